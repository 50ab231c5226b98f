/* Tells what sessions would take of memory, makes one and compares: plan MODEL.llm [TOKENS [SESSIONS]] */
#include <stdio.h>
#include <stdlib.h>
#include <llm.h>

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

static void line(const char *what, uint64_t value) { printf("%-18s %lu\n", what, (unsigned long)value); }

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_session_options *options = NULL;
    llm_session *session = NULL;
    llm_memory_plan plan;
    llm_memory_use use;
    llm_error *error = NULL;
    llm_token *ids = NULL;
    uint32_t tokens = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    uint32_t sessions = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 1;
    size_t i;
    int wrong = 1;

    if (argc < 2) return fprintf(stderr, "usage: %s MODEL.llm [TOKENS [SESSIONS]]\n", argv[0]), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    /* Mapping a file takes no memory of its own, so a plan costs nothing. */
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("options", llm_session_options_new(&options), NULL)) goto end;
    llm_session_options_set_max_tokens(options, tokens);
    plan.struct_size = sizeof plan;
    if (failed("plan", llm_model_plan(model, NULL, options, sessions, 0, &plan, &error), &error)) goto end;
    line("sessions", sessions);
    line("tokens of each", plan.tokens);
    line("weights, mapped", plan.weights_mapped);
    line("weights, copied", plan.weights_copied);
    line("kv per token", plan.kv_per_token);
    line("kv", plan.kv_total);
    line("scratch", plan.scratch);
    line("peak", plan.peak);
    line("limit", plan.limit);
    line("largest context", plan.largest_context);

    /* One session, filled to its end, takes its part of that and no more. */
    ids = malloc(plan.tokens * sizeof *ids);
    if (ids == NULL) goto end;
    for (i = 0; i < plan.tokens; i++) ids[i] = 1;
    if (failed("session", llm_session_new(model, NULL, options, &session, &error), &error)) goto end;
    if (failed("prefill", llm_session_prefill(session, ids, plan.tokens, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;
    use.struct_size = sizeof use;
    if (failed("use", llm_runtime_memory_use(runtime, &use), NULL)) goto end;
    line("used: kv", use.kv);
    line("used: scratch", use.scratch);
    wrong = 0;
end:
    free(ids);
    llm_session_options_free(options), llm_session_free(session);
    llm_model_free(model), llm_runtime_free(runtime);
    return wrong;
}

/* Continues several texts at once, one step for all of them: batch MODEL.llm "Once upon a time" "The little dog" ... */
#include <stdio.h>
#include <string.h>
#include <llm.h>

#define MOST 16

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_kv_options *kv_options = NULL;
    llm_kv_pool *pool = NULL;
    llm_generation_options *options = NULL;
    llm_batch *batch = NULL;
    llm_session *sessions[MOST] = {NULL};
    llm_sampler *samplers[MOST] = {NULL};
    llm_generation *generations[MOST] = {NULL};
    static char told[MOST][4096];
    int running[MOST], left, i, n = argc - 2, steps = 0, wrong = 1;
    llm_error *error = NULL;
    llm_token ids[1024];
    llm_memory_plan plan;
    size_t count = 0, slot;

    if (n < 1 || n > MOST) return fprintf(stderr, "usage: %s MODEL.llm TEXT... (at most %d)\n", argv[0], MOST), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    /* Pages for all of them; what two texts share at their beginnings is there once. */
    plan.struct_size = sizeof plan;
    if (failed("plan", llm_model_plan(model, NULL, NULL, (uint32_t)n, 0, &plan, &error), &error)) goto end;
    if (failed("kv options", llm_kv_options_new(&kv_options), NULL)) goto end;
    llm_kv_options_set_budget_bytes(kv_options, plan.kv_total);
    if (failed("pool", llm_kv_pool_new(model, kv_options, &pool, &error), &error)) goto end;
    if (failed("batch", llm_batch_new(pool, &batch, &error), &error)) goto end;
    if (failed("options", llm_generation_options_new(&options), NULL)) goto end;
    llm_generation_options_set_max_tokens(options, 40);

    /* All prompts in one step. */
    for (i = 0; i < n; i++) {
        if (failed("encode", llm_tokenizer_encode(tokenizer, argv[i + 2], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024,
                                                  &count), NULL)) goto end;
        if (failed("session", llm_session_new(model, pool, NULL, &sessions[i], &error), &error)) goto end;
        if (failed("add", llm_batch_add_tokens(batch, sessions[i], ids, count, LLM_WANT_LAST, NULL, &error), &error)) goto end;
    }
    if (failed("run", llm_batch_run(batch, NULL, &error), &error)) goto end;
    for (i = 0; i < n; i++)
        if (failed("prompt", llm_batch_slot_status(batch, (size_t)i, &error), &error)) goto end;
    llm_batch_clear(batch);
    for (i = 0; i < n; i++) {
        if (failed("sampler", llm_sampler_new(NULL, &samplers[i], &error), &error)) goto end;
        if (failed("generation", llm_generation_new(sessions[i], samplers[i], options, &generations[i], &error), &error)) goto end;
        running[i] = 1;
    }

    /* A token of each that has not ended, as long as there are any; others could join at any step. */
    do {
        for (i = 0, left = 0; i < n; i++) {
            if (!running[i]) continue;
            if (failed("add", llm_batch_add_generation(batch, generations[i], NULL, &error), &error)) goto end;
            left++;
        }
        if (left > 0 && failed("run", llm_batch_run(batch, NULL, &error), &error)) goto end;
        for (i = 0, slot = 0; i < n; i++) {
            llm_status status;
            if (!running[i]) continue;
            status = llm_batch_slot_status(batch, slot++, &error);
            if (failed("slot", status, &error)) goto end;
            running[i] = status == LLM_MORE;
        }
        llm_batch_clear(batch);
        for (i = 0; i < n; i++) {
            const char *text;
            if (generations[i] == NULL) continue;
            if (llm_generation_text(generations[i], &text, NULL) == LLM_OK)
                strncat(told[i], text, sizeof told[i] - strlen(told[i]) - 1);
            if (!running[i]) llm_generation_free(generations[i]), generations[i] = NULL;
        }
        steps++;
    } while (left > 0);
    for (i = 0; i < n; i++) printf("%s%s\n", argv[i + 2], told[i]);
    fprintf(stderr, "%d steps\n", steps - 1);
    wrong = 0;
end: /* any order is right */
    for (i = 0; i < MOST; i++) llm_session_free(sessions[i]), llm_sampler_free(samplers[i]), llm_generation_free(generations[i]);
    llm_batch_free(batch), llm_kv_options_free(kv_options), llm_kv_pool_free(pool), llm_generation_options_free(options);
    llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    return wrong;
}

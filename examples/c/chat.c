/* A chat in the terminal: chat MODEL.llm [TEMPERATURE]
 *
 * Each turn renders the whole conversation to ids, keeps what the session already holds of it, and prefills the
 * rest. Ctrl-C stops an answer, end of input ends the chat. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>

/* For models whose file brings no template. */
static const char PLAIN[] =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

static llm_cancel *cancel;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    llm_cancel_trigger(cancel); /* safe in a signal handler */
}

/* Shows a failure; 1 if there was one. */
static int failed(const char *what, llm_status status, llm_error **out_err) {
    const llm_error *error = out_err != NULL ? *out_err : NULL;
    int64_t offset;
    if (status >= 0) return 0;
    fprintf(stderr, "%s failed: %s", what, llm_status_name(status));
    if (error != NULL) fprintf(stderr, ": %s", llm_error_message(error, NULL));
    if (llm_error_detail(error, LLM_DETAIL_OFFSET, &offset) == LLM_OK) fprintf(stderr, " (offset %ld)", (long)offset);
    fputc('\n', stderr);
    if (out_err != NULL) llm_error_free(*out_err);
    return 1;
}

/* What an answer collects while it streams. */
struct answer {
    char text[65536];
    size_t length;
};

static llm_control on_event(void *user_data, const llm_event *event, const char *text, size_t length,
                            const llm_token *ids, size_t ids_count) {
    struct answer *answer = user_data;
    (void)event, (void)ids, (void)ids_count;
    if (length > sizeof answer->text - answer->length) return LLM_CONTROL_STOP;
    memcpy(answer->text + answer->length, text, length);
    answer->length += length;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return LLM_CONTROL_CONTINUE;
}

/* Ids of the conversation, asked for their number first; NULL after a failure. */
static llm_token *render(llm_chat *chat, llm_template *template, llm_tokenizer *tokenizer, size_t *count) {
    llm_error *error = NULL;
    llm_token *ids = NULL;
    size_t cap = 0;
    llm_status status;
    for (;;) {
        status = llm_chat_render_tokens(chat, template, tokenizer, LLM_RENDER_GENERATION_PROMPT, ids, cap, count, &error);
        if (status != LLM_BUFFER_SMALL) break;
        llm_error_free(error);
        cap = *count;
        free(ids);
        ids = malloc(cap * sizeof *ids);
        if (ids == NULL) return NULL;
    }
    if (failed("render", status, &error)) {
        free(ids);
        return NULL;
    }
    return ids;
}

/* Brings the session to hold exactly `ids`: truncates what differs, prefills what is missing. */
static int prefill(llm_session *session, const llm_token *ids, size_t count) {
    llm_error *error = NULL;
    llm_token *held = NULL;
    size_t length = 0, same = 0;
    uint32_t now = 0;
    if (llm_session_copy_tokens(session, NULL, 0, &length) == LLM_BUFFER_SMALL) {
        held = malloc(length * sizeof *held);
        if (held == NULL || llm_session_copy_tokens(session, held, length, &length) != LLM_OK) length = 0;
    }
    while (same < length && same + 1 < count && held[same] == ids[same]) same++;
    free(held);
    if (failed("truncate", llm_session_truncate(session, (uint32_t)same, &error), &error)) return 1;
    return failed("prefill", llm_session_prefill(session, ids + same, count - same, NULL, NULL, NULL, cancel, &now, &error),
                  &error);
}

/* Streams one answer and adds it to the conversation. */
static int answer(llm_session *session, llm_sampler *sampler, llm_generation_options *options, llm_chat *chat) {
    static struct answer answer;
    llm_generation *generation = NULL;
    llm_error *error = NULL;
    int32_t reason = LLM_REASON_NONE;
    int bad;
    answer.length = 0;
    if (failed("generation", llm_generation_new(session, sampler, options, &generation, &error), &error)) return 1;
    bad = failed("answer", llm_generation_run(generation, on_event, &answer, NULL, cancel, &error), &error);
    if (llm_generation_reason(generation, &reason) == LLM_OK && reason == LLM_REASON_CANCELLED) fputs(" [stopped]", stdout);
    if (reason == LLM_REASON_CONTEXT_FULL) fputs(" [the context is full]", stdout);
    fputc('\n', stdout);
    llm_generation_free(generation);
    return bad || failed("chat", llm_chat_add(chat, "assistant", LLM_NTS, answer.text, answer.length), NULL);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_template *template = NULL;
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_generation_options *options = NULL;
    llm_chat *chat = NULL;
    llm_error *error = NULL;
    llm_sampling_params params;
    struct sigaction action;
    llm_status status;
    char line[4096];
    int bad = 1;

    if (argc < 2) return fprintf(stderr, "usage: %s MODEL.llm [TEMPERATURE]\n", argv[0]), 2;
    params.struct_size = sizeof params;
    if (failed("parameters", llm_sampling_params_init(&params), NULL)) goto end;
    params.temperature = argc > 2 ? (float)atof(argv[2]) : 0;

    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("cancel", llm_cancel_new(&cancel), NULL)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, cancel, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    status = llm_model_template(model, NULL, 0, &template, &error);
    if (status == LLM_NOT_FOUND) {
        llm_error_free(error);
        status = llm_template_compile(PLAIN, LLM_NTS, NULL, 0, NULL, 0, &template, &error);
    }
    if (failed("template", status, &error)) goto end;
    if (failed("session", llm_session_new(model, NULL, NULL, &session, &error), &error)) goto end;
    if (failed("sampler", llm_sampler_new(&params, &sampler, &error), &error)) goto end;
    if (failed("options", llm_generation_options_new(&options), NULL)) goto end;
    if (failed("stop text", llm_generation_options_add_stop_text(options, "\nuser:", LLM_NTS), NULL)) goto end;
    if (failed("chat", llm_chat_new(&chat), NULL)) goto end;

    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, NULL);

    bad = 0;
    while (!bad && fputs("> ", stdout) >= 0 && fflush(stdout) == 0 && fgets(line, sizeof line, stdin) != NULL) {
        llm_token *ids;
        size_t count = 0;
        line[strcspn(line, "\n")] = '\0';
        if (failed("cancel", llm_cancel_reset(cancel), NULL)) break;
        bad = failed("chat", llm_chat_add(chat, "user", LLM_NTS, line, LLM_NTS), NULL);
        ids = bad ? NULL : render(chat, template, tokenizer, &count);
        bad = ids == NULL || prefill(session, ids, count) || answer(session, sampler, options, chat);
        free(ids);
    }
    fputc('\n', stdout);
end:
    signal(SIGINT, SIG_DFL); /* before its cancel handle goes */
    llm_chat_free(chat);
    llm_generation_options_free(options);
    llm_sampler_free(sampler);
    llm_session_free(session);
    llm_template_free(template);
    llm_tokenizer_free(tokenizer);
    llm_model_free(model);
    llm_runtime_free(runtime);
    llm_cancel_free(cancel);
    return bad;
}

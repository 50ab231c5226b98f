/* Ends a long prefill from another thread or by Ctrl-C, and goes on with the session: cancel MODEL.llm "Once upon a time" */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <llm.h>

#define LONG 16384

static llm_cancel *cancel;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int under_way;

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

/* Triggering is one atomic store: right in a signal handler, on any thread, in a callback. */
static void on_interrupt(int number) {
    (void)number;
    llm_cancel_trigger(cancel);
}

static void *impatient(void *nothing) {
    pthread_mutex_lock(&mutex);
    while (!under_way) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    llm_cancel_trigger(cancel);
    return nothing;
}

static void wake_the_impatient(void) {
    pthread_mutex_lock(&mutex);
    under_way = 1;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

static llm_control on_chunk(void *user_data, uint32_t total, uint32_t reused, uint32_t done, uint64_t milliseconds) {
    (void)user_data, (void)total, (void)reused, (void)done, (void)milliseconds;
    wake_the_impatient();
    return LLM_CONTROL_CONTINUE;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_session_options *options = NULL;
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_generation *generation = NULL;
    llm_error *error = NULL;
    llm_token ids[1024], *many = NULL;
    size_t count = 0, i;
    uint32_t held = 0;
    const char *text;
    pthread_t thread;
    llm_status status = LLM_BAD_STATE;

    if (argc < 3) return fprintf(stderr, "usage: %s MODEL.llm TEXT\n", argv[0]), 2;
    if (failed("cancel", llm_cancel_new(&cancel), NULL)) return 1;
    signal(SIGINT, on_interrupt);
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("encode", llm_tokenizer_encode(tokenizer, argv[2], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024, &count),
               NULL)) goto end;
    if (count == 0) {
        fputs("the text has no tokens\n", stderr);
        goto end;
    }
    if (failed("options", llm_session_options_new(&options), NULL)) goto end;
    llm_session_options_set_max_tokens(options, 1024 + LONG);
    llm_session_options_set_chunk_tokens(options, 32);
    if (failed("session", llm_session_new(model, NULL, options, &session, &error), &error)) goto end;
    if (failed("prefill", llm_session_prefill(session, ids, count, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;

    if ((many = malloc(LONG * sizeof *many)) == NULL) goto end;
    for (i = 0; i < LONG; i++) many[i] = ids[i % count];
    if (pthread_create(&thread, NULL, impatient, NULL) != 0) goto end;
    status = llm_session_prefill(session, many, LONG, on_chunk, NULL, NULL, cancel, &held, NULL);
    wake_the_impatient(); /* also where no chunk was done: Ctrl-C may come first */
    pthread_join(thread, NULL);
    /* The session stands where it stood before the call. */
    printf("%s: %u tokens are held, %u were before\n", llm_status_name(status), (unsigned)held, (unsigned)count);
    llm_cancel_reset(cancel);

    if (failed("sampler", llm_sampler_new(NULL, &sampler, &error), &error)) goto end;
    if (failed("generation", llm_generation_new(session, sampler, NULL, &generation, &error), &error)) goto end;
    do {
        status = llm_generation_next(generation, cancel, NULL, &error);
        if (failed("next", status, &error)) break;
        if (llm_generation_text(generation, &text, NULL) == LLM_OK) fputs(text, stdout);
    } while (status == LLM_MORE);
    puts("");
end:
    signal(SIGINT, SIG_DFL);
    free(many);
    llm_session_options_free(options);
    llm_generation_free(generation), llm_sampler_free(sampler), llm_session_free(session);
    llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    llm_cancel_free(cancel);
    return status == LLM_DONE ? 0 : 1;
}

/* Stops in the middle of a text and goes on in another process: snapshot MODEL.llm STATE "Once upon a time"
 *
 * The first time it reads the text, continues it, writes session and sampler to STATE, and goes on. Every later time it
 * goes on from STATE, with the same tokens. */
#include <stdio.h>
#include <llm.h>

#define STEPS 24

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

/* Chooses and decodes some tokens; between its calls session and sampler are all there is to save. */
static int go_on(llm_tokenizer *tokenizer, llm_session *session, llm_sampler *sampler, const char *what) {
    llm_text_stream *stream = NULL;
    llm_error *error = NULL;
    const char *text;
    llm_token id;
    int i, wrong = 1;

    printf("%s:", what);
    if (failed("stream", llm_text_stream_new(tokenizer, LLM_STREAM_SKIP_SPECIAL, &stream), NULL)) return 1;
    for (i = 0; i < STEPS; i++) {
        if (failed("sample", llm_sampler_sample(sampler, session, &id, NULL, &error), &error)) goto end;
        if (failed("accept", llm_sampler_accept(sampler, &id, 1, &error), &error)) goto end;
        if (failed("decode", llm_session_decode(session, id, NULL, &error), &error)) goto end;
        if (failed("text", llm_text_stream_push(stream, id, &text, NULL), NULL)) goto end;
        fputs(text, stdout);
    }
    if (llm_text_stream_finish(stream, &text, NULL) == LLM_OK) fputs(text, stdout);
    wrong = 0;
end:
    puts("");
    llm_text_stream_free(stream);
    return wrong;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_sampling_params params;
    llm_snapshot_info info;
    llm_error *error = NULL;
    llm_token ids[1024];
    size_t count = 0;
    llm_status status;
    int wrong = 1;

    if (argc < 4) return fprintf(stderr, "usage: %s MODEL.llm STATE TEXT\n", argv[0]), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("session", llm_session_new(model, NULL, NULL, &session, &error), &error)) goto end;
    params.struct_size = sizeof params;
    llm_sampling_params_init(&params);
    params.temperature = 0.8f;
    params.seed = 42;
    if (failed("sampler", llm_sampler_new(&params, &sampler, &error), &error)) goto end;

    /* Needs no model: a host can look before it loads anything. */
    info.struct_size = sizeof info;
    status = llm_snapshot_inspect_path(argv[2], LLM_NTS, &info, &error);
    if (status == LLM_NOT_FOUND) {
        llm_error_free(error), error = NULL;
        if (failed("encode", llm_tokenizer_encode(tokenizer, argv[3], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024, &count),
                   NULL)) goto end;
        if (failed("prefill", llm_session_prefill(session, ids, count, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;
        if (go_on(tokenizer, session, sampler, "before")) goto end;
        if (failed("save", llm_session_snapshot_path(session, sampler, argv[2], LLM_NTS, &error), &error)) goto end;
    } else {
        if (failed("inspect", status, &error)) goto end;
        printf("found %lu tokens in %lu bytes\n", (unsigned long)info.tokens, (unsigned long)info.bytes);
        if (failed("restore", llm_session_restore_path(session, sampler, argv[2], LLM_NTS, &error), &error)) goto end;
    }
    wrong = go_on(tokenizer, session, sampler, "behind");
end:
    llm_sampler_free(sampler), llm_session_free(session);
    llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    return wrong;
}

/* Writes JSON that is valid under a schema: schema MODEL.llm SCHEMA.json "A cat:" */
#include <stdio.h>
#include <llm.h>

static char schema[65536];

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
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_constraint *constraint = NULL;
    llm_generation *generation = NULL;
    llm_generation_options *options = NULL;
    llm_error *error = NULL;
    llm_token ids[1024];
    size_t count = 0, length;
    const char *text;
    int32_t reason = LLM_REASON_NONE;
    llm_status status = LLM_BAD_STATE;
    FILE *file;

    if (argc < 4) return fprintf(stderr, "usage: %s MODEL.llm SCHEMA.json TEXT\n", argv[0]), 2;
    if ((file = fopen(argv[2], "rb")) == NULL) return perror(argv[2]), 1;
    length = fread(schema, 1, sizeof schema, file);
    fclose(file);
    if (length == sizeof schema) return fprintf(stderr, "%s: longer than this program reads\n", argv[2]), 1;

    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("encode", llm_tokenizer_encode(tokenizer, argv[3], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024, &count),
               NULL)) goto end;
    /* Once per schema; any number of samplers share it. */
    if (failed("schema", llm_constraint_compile_json_schema(tokenizer, schema, length, 0, 0, NULL, &constraint, &error),
               &error)) goto end;
    if (failed("session", llm_session_new(model, NULL, NULL, &session, &error), &error)) goto end;
    if (failed("prefill", llm_session_prefill(session, ids, count, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;
    if (failed("sampler", llm_sampler_new(NULL, &sampler, &error), &error)) goto end;
    if (failed("constraint", llm_sampler_set_constraint(sampler, constraint), NULL)) goto end;
    if (failed("options", llm_generation_options_new(&options), NULL)) goto end;
    llm_generation_options_set_max_tokens(options, 200);
    if (failed("generation", llm_generation_new(session, sampler, options, &generation, &error), &error)) goto end;

    do {
        status = llm_generation_next(generation, NULL, NULL, &error);
        if (failed("next", status, &error)) break;
        if (llm_generation_text(generation, &text, NULL) == LLM_OK) fputs(text, stdout);
    } while (status == LLM_MORE);
    puts("");
    llm_generation_reason(generation, &reason);
    if (status == LLM_DONE && reason == LLM_REASON_LENGTH) fputs("cut off: the text is not complete\n", stderr);
end: /* any order is right */
    llm_constraint_free(constraint), llm_generation_options_free(options);
    llm_generation_free(generation), llm_sampler_free(sampler), llm_session_free(session);
    llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    return status == LLM_DONE ? 0 : 1;
}

/* Reads a text once and continues it several times, from one set of pages: fork MODEL.llm "Once upon a time" */
#include <stdio.h>
#include <llm.h>

#define FORKS 3

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

/* Prints a continuation of what the session holds, chosen with this seed. */
static int tell(llm_session *session, uint64_t seed) {
    llm_sampling_params params;
    llm_sampler *sampler = NULL;
    llm_generation_options *options = NULL;
    llm_generation *generation = NULL;
    llm_error *error = NULL;
    llm_status status = LLM_BAD_STATE;
    const char *text;

    params.struct_size = sizeof params;
    llm_sampling_params_init(&params);
    params.temperature = 1;
    params.seed = seed;
    if (failed("sampler", llm_sampler_new(&params, &sampler, &error), &error)) goto end;
    if (failed("options", llm_generation_options_new(&options), NULL)) goto end;
    llm_generation_options_set_max_tokens(options, 32);
    if (failed("generation", llm_generation_new(session, sampler, options, &generation, &error), &error)) goto end;
    do {
        status = llm_generation_next(generation, NULL, NULL, &error);
        if (failed("next", status, &error)) break;
        if (llm_generation_text(generation, &text, NULL) == LLM_OK) fputs(text, stdout);
    } while (status == LLM_MORE);
    puts("");
end:
    llm_generation_free(generation), llm_generation_options_free(options), llm_sampler_free(sampler);
    return status == LLM_DONE ? 0 : 1;
}

static void report(const char *when, const llm_kv_pool *pool) {
    llm_kv_stats stats;
    stats.struct_size = sizeof stats;
    if (llm_kv_pool_stats(pool, &stats) != LLM_OK) return;
    printf("%s: pages used %u shared %u cached %u free %u of %u, copied %u\n", when, (unsigned)stats.used,
           (unsigned)stats.shared, (unsigned)stats.cached, (unsigned)stats.free, (unsigned)stats.total,
           (unsigned)stats.copies);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_kv_options *options = NULL;
    llm_kv_pool *pool = NULL;
    llm_session *session = NULL, *forks[FORKS] = {NULL};
    llm_error *error = NULL;
    llm_token ids[1024];
    size_t count = 0;
    int i, wrong = 1;

    if (argc < 3) return fprintf(stderr, "usage: %s MODEL.llm TEXT\n", argv[0]), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("encode", llm_tokenizer_encode(tokenizer, argv[2], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024, &count),
               NULL)) goto end;
    if (failed("options", llm_kv_options_new(&options), NULL)) goto end;
    llm_kv_options_set_page_tokens(options, 16);
    if (failed("pool", llm_kv_pool_new(model, options, &pool, &error), &error)) goto end;
    if (failed("session", llm_session_new(model, pool, NULL, &session, &error), &error)) goto end;
    if (failed("prefill", llm_session_prefill(session, ids, count, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;
    report("read", pool);
    for (i = 0; i < FORKS; i++)
        if (failed("fork", llm_session_fork(session, &forks[i], &error), &error)) goto end;
    report("forked", pool);
    for (i = 0; i < FORKS; i++) {
        printf("%d:", i + 1);
        if (tell(forks[i], (uint64_t)i)) goto end;
    }
    report("told", pool);
    wrong = 0;
end: /* any order is right */
    for (i = 0; i < FORKS; i++) llm_session_free(forks[i]);
    llm_session_free(session);
    if (!wrong) llm_kv_pool_clear_cache(pool), report("freed", pool);
    llm_kv_options_free(options), llm_kv_pool_free(pool);
    llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    return wrong;
}

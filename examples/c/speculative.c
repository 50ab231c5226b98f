/* The same text twice, the second time with tokens guessed: speculative MODEL.llm DRAFT.llm "Once upon a time" */
#include <stdio.h>
#include <string.h>
#include <llm.h>

#define MOST 256

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

/* Generates behind ids; the tokens go to out, the counters to stats. Returns how many, or -1. */
static int generate(const llm_model *model, const llm_token *ids, size_t count, float temperature, llm_spec_options *spec,
                    llm_token *out, llm_spec_stats *stats) {
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_generation *generation = NULL;
    llm_generation_options *options = NULL;
    llm_error *error = NULL;
    llm_sampling_params params;
    const llm_token *some;
    size_t some_count;
    llm_status status = LLM_BAD_STATE;
    size_t total = 0;

    params.struct_size = sizeof params;
    if (failed("parameters", llm_sampling_params_init(&params), NULL)) goto end;
    params.temperature = temperature;
    params.seed = 7;
    if (failed("session", llm_session_new(model, NULL, NULL, &session, &error), &error)) goto end;
    if (failed("prefill", llm_session_prefill(session, ids, count, NULL, NULL, NULL, NULL, NULL, &error), &error)) goto end;
    if (failed("sampler", llm_sampler_new(&params, &sampler, &error), &error)) goto end;
    if (failed("options", llm_generation_options_new(&options), NULL)) goto end;
    llm_generation_options_set_max_tokens(options, MOST / 2);
    if (failed("spec", llm_generation_options_set_spec(options, spec), NULL)) goto end;
    if (failed("generation", llm_generation_new(session, sampler, options, &generation, &error), &error)) goto end;
    do {
        status = llm_generation_next(generation, NULL, NULL, &error);
        if (failed("next", status, &error)) break;
        /* With guesses an event may tell several tokens. */
        if (llm_generation_ids(generation, &some, &some_count) == LLM_OK && total + some_count <= MOST) {
            memcpy(out + total, some, some_count * sizeof *some);
            total += some_count;
        }
    } while (status == LLM_MORE);
    stats->struct_size = sizeof *stats;
    if (failed("stats", llm_generation_spec_stats(generation, stats), NULL)) status = LLM_BAD_STATE;
end:
    llm_generation_free(generation), llm_generation_options_free(options);
    llm_sampler_free(sampler), llm_session_free(session);
    return status == LLM_DONE ? (int)total : -1;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL, *draft = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_spec_options *lookup = NULL, *drafting = NULL;
    llm_error *error = NULL;
    llm_token ids[1024], plain[MOST], guessed[MOST];
    llm_spec_stats stats;
    size_t count = 0;
    int way, n, ok = 0;

    if (argc < 4) return fprintf(stderr, "usage: %s MODEL.llm DRAFT.llm TEXT\n", argv[0]), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("draft", llm_model_open_path(runtime, argv[2], LLM_NTS, NULL, NULL, &draft, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("encode", llm_tokenizer_encode(tokenizer, argv[3], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 1024, &count),
               NULL)) goto end;

    if (failed("lookup", llm_spec_options_new(&lookup), NULL)) goto end;
    if (failed("lookup", llm_spec_options_set_ngram(lookup, 2, 8, NULL, 0, &error), &error)) goto end;
    if (failed("drafting", llm_spec_options_new(&drafting), NULL)) goto end;
    if (failed("drafting", llm_spec_options_set_draft_model(drafting, draft, NULL, 1, 4, &error), &error)) goto end;
    llm_spec_options_set_adaptive(drafting, 0);
    /* Told before anything is computed: does the draft speak of the same tokens? */
    if (failed("check", llm_spec_check(model, drafting, &error), &error)) goto end;

    for (way = 0; way < 4; way++) {
        float temperature = way < 2 ? 0.0f : 0.8f;
        n = generate(model, ids, count, temperature, NULL, plain, &stats);
        if (n < 0 || generate(model, ids, count, temperature, way % 2 ? drafting : lookup, guessed, &stats) != n) goto end;
        if (memcmp(plain, guessed, (size_t)n * sizeof *plain) != 0) {
            fputs("the tokens differ\n", stderr);
            goto end;
        }
        if (stats.drafted != stats.accepted + stats.rejected || stats.bonus > stats.verify_steps) goto end;
        printf("%s at %.1f: %d tokens, the same; %lu guessed, %lu true, in %lu steps\n", way % 2 ? "draft" : "lookup",
               temperature, n, (unsigned long)stats.drafted, (unsigned long)stats.accepted,
               (unsigned long)(stats.verify_steps + stats.plain_steps));
    }
    ok = 1;
end: /* any order is right */
    llm_spec_options_free(lookup), llm_spec_options_free(drafting);
    llm_tokenizer_free(tokenizer), llm_model_free(draft), llm_model_free(model), llm_runtime_free(runtime);
    return ok ? 0 : 1;
}

/* What a host is told of tokens: texts encoded together, and what every token of an event was chosen among: tokens MODEL.llm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

#define MOST 64
#define TOP 3

/* What is told of each token of a generation. */
typedef struct told {
    llm_token ids[MOST], top[MOST][TOP];
    float values[MOST], top_values[MOST][TOP];
    size_t count, events;
} told;

static void take(llm_generation *generation, told *all) {
    const llm_token *ids = NULL;
    llm_token first[TOP];
    float first_values[TOP];
    size_t count = 0, i, needed = 0;
    EXPECT(llm_generation_ids(generation, &ids, &count), LLM_OK);
    for (i = 0; i < count && all->count < MOST; i++, all->count++) {
        all->ids[all->count] = ids[i];
        all->values[all->count] = 7;
        EXPECT(llm_generation_top_at(generation, i, &all->values[all->count], NULL, NULL, 0, &needed), LLM_BUFFER_SMALL);
        TRUE(needed == TOP && all->values[all->count] == 7); /* a failure writes nothing else */
        EXPECT(llm_generation_top_at(generation, i, NULL, all->top[all->count], NULL, TOP, NULL), LLM_NULL_ARG);
        EXPECT(llm_generation_top_at(generation, i, &all->values[all->count], all->top[all->count],
                                     all->top_values[all->count], TOP, &needed), LLM_OK);
        EXPECT(needed, TOP);
        if (i == 0) {
            EXPECT(llm_generation_top(generation, first, first_values, TOP, &needed), LLM_OK);
            TRUE(memcmp(first, all->top[all->count], sizeof first) == 0);
            TRUE(memcmp(first_values, all->top_values[all->count], sizeof first_values) == 0);
        }
        /* Those of the first generation, where ids lie in the event, are borrowed until the next call. */
        EXPECT(llm_generation_ids(generation, &ids, &count), LLM_OK);
    }
    EXPECT(llm_generation_top_at(generation, count, NULL, NULL, NULL, 0, &needed), LLM_INVALID_ARG);
    all->events++;
}

static void generate(llm_model *model, const llm_token *prompt, size_t length, llm_spec_options *spec, int echo, told *all) {
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_generation *generation = NULL;
    llm_generation_options *options = NULL;
    llm_status status;
    size_t needed = 7;
    float value = 0;
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_keep_hidden(session), LLM_OK);
    EXPECT(llm_session_prefill(session, prompt, length, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_options_new(&options), LLM_OK);
    EXPECT(llm_generation_options_set_max_tokens(options, 40), LLM_OK);
    EXPECT(llm_generation_options_set_top_logprobs(options, TOP), LLM_OK);
    EXPECT(llm_generation_options_set_echo(options, echo), LLM_OK);
    EXPECT(llm_generation_options_set_spec(options, spec), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, options, &generation, NULL), LLM_OK);
    EXPECT(llm_generation_top_at(generation, 0, NULL, NULL, NULL, 0, &needed), LLM_INVALID_ARG);
    if (echo) {
        EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_MORE);
        EXPECT(llm_generation_top_at(generation, length - 1, &value, NULL, NULL, 0, &needed), LLM_OK);
        TRUE(isnan(value) && needed == 0);
        EXPECT(llm_generation_top_at(generation, 0, &value, NULL, NULL, 0, &needed), LLM_OK);
        TRUE(isnan(value) && needed == 0);
    }
    memset(all, 0, sizeof *all);
    do {
        status = llm_generation_next(generation, NULL, NULL, NULL);
        TRUE(status == LLM_MORE || status == LLM_DONE);
        take(generation, all);
    } while (status == LLM_MORE);
    llm_generation_free(generation), llm_generation_options_free(options);
    llm_sampler_free(sampler), llm_session_free(session);
}

/* Guessed tokens are told with what they would be told with alone, and scores say the same of them. */
static void places(llm_model *model) {
    llm_token ids[8] = {1, 403, 407, 261, 378, 300, 301, 302}, top[MOST * TOP];
    float scores[MOST], values[MOST * TOP];
    llm_spec_options *spec = NULL;
    llm_session *session = NULL;
    size_t scored = 0, i;
    told *plain = malloc(sizeof *plain), *guessed = malloc(sizeof *guessed);
    if (plain == NULL || guessed == NULL) exit(3);
    EXPECT(llm_spec_options_new(&spec), LLM_OK);
    EXPECT(llm_spec_options_set_draft_model(spec, model, NULL, 2, 4, NULL), LLM_OK);
    EXPECT(llm_spec_options_set_adaptive(spec, 0), LLM_OK);
    generate(model, ids, 5, NULL, 1, plain);
    generate(model, ids, 5, spec, 0, guessed);
    TRUE(plain->count == guessed->count && plain->count > 20);
    TRUE(guessed->events * 2 < plain->events);
    TRUE(memcmp(plain->ids, guessed->ids, plain->count * sizeof *plain->ids) == 0);
    TRUE(memcmp(plain->values, guessed->values, plain->count * sizeof *plain->values) == 0);
    TRUE(memcmp(plain->top, guessed->top, sizeof plain->top) == 0);
    TRUE(memcmp(plain->top_values, guessed->top_values, sizeof plain->top_values) == 0);

    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 5, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_session_score(session, plain->ids, plain->count, scores, TOP, top, values, NULL, NULL, NULL, NULL, &scored,
                             NULL), LLM_OK);
    EXPECT(scored, plain->count);
    for (i = 0; i < scored; i++) TRUE(fabs(scores[i] - plain->values[i]) < 1e-4);
    TRUE(memcmp(top, plain->top, scored * TOP * sizeof *top) == 0);
    llm_session_free(session), llm_spec_options_free(spec);
    free(plain), free(guessed);
}

/* A text behind another is encoded as they stand together. */
static void pairs(llm_model *model) {
    llm_tokenizer *tokenizer = NULL;
    llm_token both[32], whole[32];
    size_t count = 0, context = 99, length = 0;
    EXPECT(llm_model_tokenizer(model, &tokenizer), LLM_OK);
    EXPECT(llm_tokenizer_encode(tokenizer, "Once upon a time", LLM_NTS, LLM_ENCODE_ADD_SPECIAL, whole, 32, &length), LLM_OK);
    EXPECT(llm_tokenizer_encode_pair(tokenizer, "Once upon", LLM_NTS, " a time", LLM_NTS, LLM_ENCODE_ADD_SPECIAL, both, 2,
                                     &count, &context), LLM_BUFFER_SMALL);
    TRUE(count == length);
    EXPECT(llm_tokenizer_encode_pair(tokenizer, "Once upon", LLM_NTS, " a time", LLM_NTS, LLM_ENCODE_ADD_SPECIAL, both, 32,
                                     &count, &context), LLM_OK);
    TRUE(count == length && context > 1 && context < count && memcmp(both, whole, count * sizeof *both) == 0);
    /* The user's text is no token of the model's. */
    EXPECT(llm_tokenizer_encode_pair(tokenizer, "<s>", LLM_NTS, "</s>", LLM_NTS, LLM_ENCODE_PARSE_SPECIAL, both, 32, &count,
                                     &context), LLM_OK);
    TRUE(context == 1 && count > 2 && both[0] == 1);
    EXPECT(llm_tokenizer_encode_pair(tokenizer, "a", LLM_NTS, "b", LLM_NTS, 1u << 30, both, 32, &count, &context),
           LLM_INVALID_ARG);
    EXPECT(llm_tokenizer_encode_pair(tokenizer, "a", LLM_NTS, "\xc3", 1, 0, both, 32, &count, &context), LLM_BAD_UTF8);
    llm_tokenizer_free(tokenizer);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    if (argc < 2) return fprintf(stderr, "usage: %s MODEL.llm\n", argv[0]), 2;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    places(model);
    pairs(model);
    llm_model_free(model), llm_runtime_free(runtime);
    return failures != 0;
}

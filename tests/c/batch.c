/* Steps of several sessions and generations, and what a host can do wrong with them: batch MODEL.llm */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

static llm_token ids[40];
static size_t vocabulary;

static llm_kv_pool *pool_of(llm_model *model, uint64_t pages) {
    llm_kv_options *options = NULL;
    llm_kv_pool *pool = NULL;
    llm_kv_stats stats;
    EXPECT(llm_kv_options_new(&options), LLM_OK);
    EXPECT(llm_kv_options_set_page_tokens(options, 16), LLM_OK);
    EXPECT(llm_kv_pool_new(model, options, &pool, NULL), LLM_OK);
    stats.struct_size = sizeof stats;
    EXPECT(llm_kv_pool_stats(pool, &stats), LLM_OK);
    EXPECT(llm_kv_pool_resize(pool, pages * stats.page_bytes, NULL), LLM_OK);
    llm_kv_options_free(options);
    return pool;
}

static llm_session *session_of(llm_model *model, llm_kv_pool *pool) {
    llm_session *session = NULL;
    EXPECT(llm_session_new(model, pool, NULL, &session, NULL), LLM_OK);
    return session;
}

static uint32_t length(llm_session *session) {
    uint32_t now = 0;
    EXPECT(llm_session_length(session, &now), LLM_OK);
    return now;
}

static void same_logits(llm_session *a, llm_session *b) {
    const float *left = NULL, *right = NULL;
    EXPECT(llm_session_logits(a, &left, NULL), LLM_OK);
    EXPECT(llm_session_logits(b, &right, NULL), LLM_OK);
    TRUE(left != NULL && right != NULL && memcmp(left, right, vocabulary * sizeof *left) == 0);
}

static void together_equals_alone(llm_model *model) {
    llm_kv_pool *pool = pool_of(model, 40);
    llm_session *a = session_of(model, pool), *b = session_of(model, pool), *c = session_of(model, pool);
    llm_session *alone = session_of(model, NULL);
    llm_batch *batch = NULL;
    const float *rows = NULL;
    size_t slot = 9, count = 9;
    EXPECT(llm_batch_new(pool, &batch, NULL), LLM_OK);
    EXPECT(llm_batch_run(batch, NULL, NULL), LLM_OK); /* of nobody */
    EXPECT(llm_batch_clear(batch), LLM_OK);
    EXPECT(llm_batch_add_tokens(batch, a, ids, 20, LLM_WANT_LAST, &slot, NULL), LLM_OK);
    EXPECT(slot, 0);
    EXPECT(llm_batch_add_tokens(batch, b, ids + 5, 7, LLM_WANT_ALL, &slot, NULL), LLM_OK);
    EXPECT(slot, 1);
    EXPECT(llm_batch_add_tokens(batch, c, ids, 3, LLM_WANT_NONE, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 0, NULL), LLM_BAD_STATE);
    EXPECT(llm_session_length(a, (uint32_t[]){0}), LLM_BUSY);
    EXPECT(llm_batch_add_tokens(batch, a, ids, 1, LLM_WANT_LAST, NULL, NULL), LLM_BUSY);
    EXPECT(llm_batch_run(batch, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_run(batch, NULL, NULL), LLM_BAD_STATE);
    EXPECT(llm_batch_slot_status(batch, 0, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 3, NULL), LLM_INVALID_ARG);
    EXPECT(llm_batch_slot_logits(batch, 1, &rows, &count, NULL), LLM_OK);
    EXPECT(count, 7 * vocabulary);
    EXPECT(llm_session_prefill(alone, ids + 5, 7, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    {
        const float *own = NULL;
        EXPECT(llm_session_logits(alone, &own, NULL), LLM_OK);
        TRUE(memcmp(rows + 6 * vocabulary, own, vocabulary * sizeof *own) == 0);
    }
    EXPECT(llm_batch_slot_logits(batch, 2, &rows, &count, NULL), LLM_OK);
    EXPECT(count, 0);
    EXPECT(llm_session_reset(a), LLM_BUSY); /* until it is cleared */
    EXPECT(llm_batch_clear(batch), LLM_OK);
    EXPECT(length(a), 20);
    EXPECT(length(c), 3);
    same_logits(b, alone);
    EXPECT(llm_session_logits(c, &rows, NULL), LLM_BAD_STATE);
    EXPECT(llm_session_reset(alone), LLM_OK);
    EXPECT(llm_session_prefill(alone, ids, 20, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    same_logits(a, alone);
    llm_session_free(a);
    llm_session_free(b);
    llm_session_free(c);
    llm_session_free(alone);
    llm_batch_free(batch);
    llm_kv_pool_free(pool);
}

static void a_slot_that_fails_touches_no_other(llm_model *model) {
    llm_kv_pool *pool = pool_of(model, 3), *other = pool_of(model, 3);
    llm_session *good = session_of(model, pool), *bad = session_of(model, pool), *full = session_of(model, pool);
    llm_session *foreign = session_of(model, other), *alone = session_of(model, NULL);
    llm_batch *batch = NULL;
    llm_cancel *cancel = NULL;
    llm_error *error = NULL;
    llm_token wrong[2] = {5, -1};
    int64_t number = -1;
    const float *rows = (const float *)1;
    EXPECT(llm_batch_new(pool, &batch, NULL), LLM_OK);
    EXPECT(llm_batch_add_tokens(batch, foreign, ids, 1, LLM_WANT_LAST, NULL, NULL), LLM_INVALID_ARG);
    EXPECT(length(foreign), 0);
    EXPECT(llm_batch_add_tokens(batch, good, ids, 1, 7, NULL, NULL), LLM_INVALID_ARG);
    EXPECT(llm_batch_add_tokens(batch, good, NULL, 1, LLM_WANT_LAST, NULL, NULL), LLM_NULL_ARG);
    EXPECT(length(good), 0);
    EXPECT(llm_batch_add_tokens(batch, bad, wrong, 2, LLM_WANT_LAST, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_add_tokens(batch, good, ids, 30, LLM_WANT_LAST, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_add_tokens(batch, full, ids + 1, 30, LLM_WANT_LAST, NULL, NULL), LLM_OK);
    EXPECT(llm_cancel_new(&cancel), LLM_OK);
    llm_cancel_trigger(cancel);
    EXPECT(llm_batch_run(batch, cancel, NULL), LLM_CANCELLED);
    EXPECT(llm_batch_slot_status(batch, 1, NULL), LLM_BAD_STATE);
    EXPECT(llm_cancel_reset(cancel), LLM_OK);
    EXPECT(llm_batch_run(batch, cancel, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 0, &error), LLM_INVALID_ARG);
    EXPECT(llm_error_detail(error, LLM_DETAIL_SLOT, &number), LLM_OK);
    EXPECT(number, 0);
    EXPECT(llm_error_detail(error, LLM_DETAIL_TOKEN_INDEX, &number), LLM_OK);
    EXPECT(number, 1);
    llm_error_free(error);
    EXPECT(llm_batch_slot_status(batch, 1, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 2, &error), LLM_KV_FULL);
    EXPECT(llm_error_detail(error, LLM_DETAIL_SLOT, &number), LLM_OK);
    EXPECT(number, 2);
    llm_error_free(error);
    EXPECT(llm_batch_slot_logits(batch, 2, &rows, NULL, NULL), LLM_KV_FULL);
    TRUE(rows == NULL);
    EXPECT(llm_batch_add_tokens(batch, foreign, ids, 1, LLM_WANT_LAST, NULL, NULL), LLM_BAD_STATE);
    EXPECT(llm_batch_clear(batch), LLM_OK);
    EXPECT(length(bad), 0);
    EXPECT(length(full), 0);
    EXPECT(llm_session_prefill(alone, ids, 30, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    same_logits(good, alone);
    /* Freed in any order, in the middle of a batch. */
    EXPECT(llm_batch_add_tokens(batch, good, ids, 1, LLM_WANT_LAST, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_add_tokens(batch, bad, ids, 1, LLM_WANT_LAST, NULL, NULL), LLM_OK);
    llm_session_free(good);
    llm_kv_pool_free(pool);
    EXPECT(llm_batch_run(batch, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 0, NULL), LLM_OK);
    llm_batch_free(batch);
    EXPECT(length(bad), 1);
    llm_session_free(bad);
    llm_session_free(full);
    llm_session_free(foreign);
    llm_session_free(alone);
    llm_cancel_free(cancel);
    llm_kv_pool_free(other);
}

#define MOST 24

struct tale {
    llm_token ids[2 * MOST];
    size_t count;
    char text[1024];
    int32_t reason;
};

static void hear(llm_generation *generation, struct tale *tale) {
    const char *text = NULL;
    const llm_token *got = NULL;
    size_t count = 0;
    llm_event event;
    memset(&event, 0, sizeof event);
    event.struct_size = sizeof event;
    EXPECT(llm_generation_event(generation, &event), LLM_OK);
    EXPECT(llm_generation_text(generation, &text, NULL), LLM_OK);
    EXPECT(llm_generation_ids(generation, &got, &count), LLM_OK);
    EXPECT(event.ids_count, count);
    EXPECT(event.text_length, strlen(text));
    if (tale->count + count <= 2 * MOST && count > 0) memcpy(tale->ids + tale->count, got, count * sizeof *got), tale->count += count;
    strncat(tale->text, text, sizeof tale->text - strlen(tale->text) - 1);
    tale->reason = event.reason;
}

static llm_generation *teller(llm_session *session, uint64_t seed, int echo, const char *stop) {
    llm_generation_options *options = NULL;
    llm_sampling_params params;
    llm_sampler *sampler = NULL;
    llm_generation *generation = NULL;
    params.struct_size = sizeof params;
    EXPECT(llm_sampling_params_init(&params), LLM_OK);
    params.temperature = 0.9f;
    params.seed = seed;
    EXPECT(llm_sampler_new(&params, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_options_new(&options), LLM_OK);
    EXPECT(llm_generation_options_set_max_tokens(options, MOST), LLM_OK);
    EXPECT(llm_generation_options_set_echo(options, echo), LLM_OK);
    if (stop != NULL) EXPECT(llm_generation_options_add_stop_text(options, stop, LLM_NTS), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, options, &generation, NULL), LLM_OK);
    llm_generation_options_free(options);
    llm_sampler_free(sampler); /* goes with the generation */
    return generation;
}

static void generations_tell_the_same_in_a_batch(llm_model *model) {
    enum { N = 4 };
    static const char *const stops[N] = {NULL, NULL, "e", NULL};
    struct tale alone[N], together[N];
    llm_kv_pool *pool = pool_of(model, 40);
    llm_session *sessions[N];
    llm_generation *generations[N];
    llm_batch *batch = NULL;
    llm_cancel *cancel = NULL;
    int i, step, running[N], left = N;
    size_t held[N];
    memset(alone, 0, sizeof alone);
    memset(together, 0, sizeof together);
    for (i = 0; i < N; i++) {
        llm_session *session = session_of(model, NULL);
        llm_generation *generation;
        llm_status status;
        EXPECT(llm_session_prefill(session, ids + i, 6, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
        generation = teller(session, (uint64_t)i, i == 1, stops[i]);
        do {
            status = llm_generation_next(generation, NULL, NULL, NULL);
            TRUE(status == LLM_MORE || status == LLM_DONE);
            hear(generation, &alone[i]);
        } while (status == LLM_MORE);
        llm_generation_free(generation);
        held[i] = length(session);
        llm_session_free(session);
    }
    EXPECT(llm_batch_new(pool, &batch, NULL), LLM_OK);
    EXPECT(llm_cancel_new(&cancel), LLM_OK);
    for (i = 0; i < N; i++) {
        sessions[i] = session_of(model, pool);
        EXPECT(llm_session_prefill(sessions[i], ids + i, 6, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
        generations[i] = teller(sessions[i], (uint64_t)i, i == 1, stops[i]);
        running[i] = 1;
    }
    for (step = 0; left > 0 && step < 4 * MOST; step++) {
        size_t slot = 0, places[N];
        for (i = 0; i < N; i++) {
            places[i] = 99;
            /* They join late and rest now and then. */
            if (!running[i] || step < i || (step + i) % 5 == 4) continue;
            EXPECT(llm_batch_add_generation(batch, generations[i], &places[i], NULL), LLM_OK);
            EXPECT(places[i], slot++);
            EXPECT(llm_generation_next(generations[i], NULL, NULL, NULL), LLM_BUSY);
            EXPECT(llm_batch_add_generation(batch, generations[i], NULL, NULL), LLM_BUSY);
        }
        if (step % 3 == 0) {
            llm_cancel_trigger(cancel);
            EXPECT(llm_batch_run(batch, cancel, NULL), LLM_CANCELLED);
            EXPECT(llm_cancel_reset(cancel), LLM_OK);
        }
        EXPECT(llm_batch_run(batch, cancel, NULL), LLM_OK);
        for (i = 0; i < N; i++) {
            llm_status status;
            if (places[i] == 99) continue;
            status = llm_batch_slot_status(batch, places[i], NULL);
            TRUE(status == LLM_MORE || status == LLM_DONE);
            if (status == LLM_DONE) running[i] = 0, left--;
        }
        EXPECT(llm_batch_clear(batch), LLM_OK);
        for (i = 0; i < N; i++)
            if (places[i] != 99) hear(generations[i], &together[i]);
    }
    EXPECT(left, 0);
    for (i = 0; i < N; i++) {
        llm_token unheld[4];
        size_t count = 9;
        EXPECT(together[i].count, alone[i].count);
        TRUE(memcmp(together[i].ids, alone[i].ids, alone[i].count * sizeof(llm_token)) == 0);
        TRUE(strcmp(together[i].text, alone[i].text) == 0);
        EXPECT(together[i].reason, alone[i].reason);
        EXPECT(llm_generation_unheld(generations[i], unheld, 4, &count), LLM_OK);
        TRUE(count <= 1 && (count == 0 || unheld[0] == alone[i].ids[alone[i].count - 1]));
        /* One that has ended says so again. */
        EXPECT(llm_batch_add_generation(batch, generations[i], NULL, NULL), LLM_OK);
    }
    EXPECT(llm_batch_run(batch, NULL, NULL), LLM_OK);
    EXPECT(llm_batch_slot_status(batch, 0, NULL), LLM_DONE);
    for (i = 0; i < N; i++) llm_generation_free(generations[i]);
    EXPECT(llm_session_length(sessions[0], (uint32_t[]){0}), LLM_BUSY);
    llm_batch_free(batch);
    for (i = 0; i < N; i++) {
        EXPECT(length(sessions[i]), held[i]);
        llm_session_free(sessions[i]);
    }
    llm_cancel_free(cancel);
    llm_kv_pool_free(pool);
}

/* --- callbacks ----------------------------------------------------------------------------------------------- */

struct inside {
    llm_batch *batch;
    llm_generation *generation;
    llm_session *session;
    int calls;
};

static llm_control look(void *user_data, uint64_t position, const llm_token *seen, size_t seen_count, float *logits,
                        size_t logits_count) {
    struct inside *inside = user_data;
    (void)position, (void)seen, (void)seen_count, (void)logits;
    inside->calls++;
    EXPECT(logits_count, vocabulary);
    EXPECT(llm_batch_run(inside->batch, NULL, NULL), LLM_REENTRANT);
    EXPECT(llm_batch_clear(inside->batch), LLM_REENTRANT);
    EXPECT(llm_batch_slot_status(inside->batch, 0, NULL), LLM_REENTRANT);
    EXPECT(llm_generation_next(inside->generation, NULL, NULL, NULL), LLM_BUSY);
    EXPECT(llm_session_reset(inside->session), LLM_BUSY);
    return inside->calls < 3 ? LLM_CONTROL_CONTINUE : LLM_CONTROL_CANCEL;
}

static void callbacks_and_wrong_handles(llm_model *model) {
    struct inside inside;
    llm_kv_pool *pool = pool_of(model, 8);
    llm_sampler *sampler = NULL;
    llm_session *other = session_of(model, NULL);
    llm_generation *foreign = NULL;
    llm_sampler *second = NULL;
    int i;
    memset(&inside, 0, sizeof inside);
    EXPECT(llm_batch_new(pool, &inside.batch, NULL), LLM_OK);
    inside.session = session_of(model, pool);
    EXPECT(llm_session_prefill(inside.session, ids, 6, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_sampler_add_processor(sampler, LLM_STAGE_BEFORE_PENALTIES, 1, look, &inside, NULL), LLM_OK);
    EXPECT(llm_generation_new(inside.session, sampler, NULL, &inside.generation, NULL), LLM_OK);
    for (i = 0; i < 3; i++) {
        EXPECT(llm_batch_add_generation(inside.batch, inside.generation, NULL, NULL), LLM_OK);
        EXPECT(llm_batch_run(inside.batch, NULL, NULL), LLM_OK);
        EXPECT(llm_batch_slot_status(inside.batch, 0, NULL), i < 2 ? LLM_MORE : LLM_CANCELLED);
        EXPECT(llm_batch_clear(inside.batch), LLM_OK);
    }
    EXPECT(inside.calls, 3);
    /* Of another pool, of another kind, not at all. */
    EXPECT(llm_session_prefill(other, ids, 3, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_sampler_new(NULL, &second, NULL), LLM_OK);
    EXPECT(llm_generation_new(other, second, NULL, &foreign, NULL), LLM_OK);
    EXPECT(llm_batch_add_generation(inside.batch, foreign, NULL, NULL), LLM_INVALID_ARG);
    EXPECT(llm_generation_next(foreign, NULL, NULL, NULL), LLM_MORE);
    EXPECT(llm_batch_add_generation(inside.batch, (llm_generation *)pool, NULL, NULL), LLM_INVALID_ARG);
    EXPECT(llm_batch_add_generation(inside.batch, NULL, NULL, NULL), LLM_NULL_ARG);
    EXPECT(llm_batch_new((llm_kv_pool *)inside.batch, &(llm_batch *){NULL}, NULL), LLM_INVALID_ARG);
    llm_batch_free(inside.batch);
    llm_generation_free(inside.generation);
    llm_generation_free(foreign);
    llm_session_free(inside.session);
    llm_session_free(other);
    llm_sampler_free(sampler);
    llm_sampler_free(second);
    llm_kv_pool_free(pool);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_model_info info;
    int i;
    if (argc < 2) return 2;
    for (i = 0; i < 40; i++) ids[i] = 3 + (i * 37) % 400;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    if (failures > 0) return 1;
    info.struct_size = sizeof info;
    EXPECT(llm_model_get_info(model, &info), LLM_OK);
    vocabulary = info.vocabulary;
    together_equals_alone(model);
    a_slot_that_fails_touches_no_other(model);
    generations_tell_the_same_in_a_batch(model);
    callbacks_and_wrong_handles(model);
    llm_model_free(model);
    llm_runtime_free(runtime);
    return failures > 0;
}

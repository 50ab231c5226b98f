/* What a host can do with KV pools and the sessions in them: pool MODEL.llm */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

#define TOKENS 70
static llm_token ids[TOKENS];

static llm_kv_stats stats(const llm_kv_pool *pool) {
    llm_kv_stats now;
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    EXPECT(llm_kv_pool_stats(pool, &now), LLM_OK);
    EXPECT(now.used + now.cached + now.free, now.total);
    EXPECT(now.groups, 1); /* no layer has a window */
    return now;
}

static llm_session_stats session_stats(llm_session *session) {
    llm_session_stats now;
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    EXPECT(llm_session_get_stats(session, &now), LLM_OK);
    return now;
}

/* A pool of this many pages of 16 tokens. */
static llm_kv_pool *pool_of(llm_model *model, uint64_t pages, uint64_t swap_pages) {
    llm_kv_options *options = NULL;
    llm_kv_pool *pool = NULL;
    uint64_t bytes;
    EXPECT(llm_kv_options_new(&options), LLM_OK);
    EXPECT(llm_kv_options_set_page_tokens(options, 16), LLM_OK);
    EXPECT(llm_kv_options_set_type(options, LLM_KV_TYPE_I8_F16), LLM_OK);
    EXPECT(llm_kv_pool_new(model, options, &pool, NULL), LLM_OK);
    bytes = stats(pool).page_bytes;
    llm_kv_pool_free(pool);
    EXPECT(llm_kv_options_set_budget_bytes(options, bytes * pages), LLM_OK);
    EXPECT(llm_kv_options_set_swap_bytes(options, bytes * swap_pages), LLM_OK);
    EXPECT(llm_kv_options_set_eviction(options, LLM_EVICTION_PRIORITY), LLM_OK);
    EXPECT(llm_kv_options_set_prefix_cache(options, 1), LLM_OK);
    pool = NULL;
    EXPECT(llm_kv_pool_new(model, options, &pool, NULL), LLM_OK);
    llm_kv_options_free(options);
    EXPECT(stats(pool).total, pages);
    EXPECT(stats(pool).kv_type, LLM_KV_TYPE_I8_F16);
    return pool;
}

static llm_session *session_of(llm_model *model, llm_kv_pool *pool, int32_t priority) {
    llm_session_options *options = NULL;
    llm_session *session = NULL;
    EXPECT(llm_session_options_new(&options), LLM_OK);
    EXPECT(llm_session_options_set_priority(options, priority), LLM_OK);
    EXPECT(llm_session_new(model, pool, options, &session, NULL), LLM_OK);
    llm_session_options_free(options);
    return session;
}

static llm_status prefill(llm_session *session, const llm_token *from, size_t count) {
    return llm_session_prefill(session, from, count, NULL, NULL, NULL, NULL, NULL, NULL);
}

/* The logits of both are the same bits. */
static void same(llm_session *a, llm_session *b) {
    const float *left = NULL, *right = NULL;
    size_t count = 0, other = 0;
    EXPECT(llm_session_logits(a, &left, &count), LLM_OK);
    EXPECT(llm_session_logits(b, &right, &other), LLM_OK);
    TRUE(count > 0 && count == other && memcmp(left, right, count * sizeof *left) == 0);
}

static void options(llm_model *model) {
    llm_kv_options *options = NULL;
    llm_kv_pool *pool = (llm_kv_pool *)1;
    llm_error *error = NULL;
    llm_kv_stats small;
    int64_t needed = 0;
    EXPECT(llm_kv_options_new(&options), LLM_OK);
    EXPECT(llm_kv_options_set_page_tokens(options, 48), LLM_INVALID_ARG);
    EXPECT(llm_kv_options_set_type(options, 5), LLM_INVALID_ARG);
    EXPECT(llm_kv_options_set_eviction(options, -1), LLM_INVALID_ARG);
    EXPECT(llm_kv_options_set_budget_bytes(options, 1), LLM_OK);
    EXPECT(llm_kv_pool_new(model, options, &pool, &error), LLM_INVALID_ARG);
    TRUE(pool == NULL);
    EXPECT(llm_error_detail(error, LLM_DETAIL_NEEDED, &needed), LLM_OK);
    TRUE(needed > 1);
    llm_error_free(error);
    EXPECT(llm_kv_options_set_budget_bytes(options, UINT64_MAX), LLM_OK);
    EXPECT(llm_kv_pool_new(model, options, &pool, NULL), LLM_NO_MEMORY);
    EXPECT(llm_kv_pool_new((llm_model *)options, options, &pool, NULL), LLM_INVALID_ARG);
    llm_kv_options_free(options);
    EXPECT(llm_kv_pool_new(model, NULL, &pool, NULL), LLM_OK);
    small.struct_size = 8;
    EXPECT(llm_kv_pool_stats(pool, &small), LLM_INVALID_ARG);
    EXPECT(llm_kv_pool_stats(pool, NULL), LLM_NULL_ARG);
    llm_kv_pool_free(pool);
}

static void forks_share_and_go_their_own_way(llm_model *model) {
    llm_kv_pool *pool = pool_of(model, 40, 0);
    llm_session *a = session_of(model, pool, 0), *b = NULL, *alone = session_of(model, pool, 0);
    llm_kv_stats before, now;
    llm_session_stats own;
    size_t matched = 99;
    EXPECT(prefill(a, ids, 40), LLM_OK);
    before = stats(pool);
    EXPECT(before.used, 3);
    EXPECT(llm_session_fork(a, &b, NULL), LLM_OK);
    now = stats(pool);
    EXPECT(now.shared, 3);
    EXPECT(now.used, before.used);
    EXPECT(session_stats(b).shared_pages, 3);
    EXPECT(session_stats(b).prefilled_tokens, 0);
    same(a, b);
    EXPECT(llm_session_decode(b, ids[40], NULL, NULL), LLM_OK);
    EXPECT(llm_session_decode(a, ids[50], NULL, NULL), LLM_OK);
    EXPECT(stats(pool).copies, 1);
    EXPECT(stats(pool).shared, 2);
    /* Another session finds the full pages. */
    EXPECT(llm_session_match_prefix(alone, ids, 41, &matched), LLM_OK);
    EXPECT(matched, 32);
    EXPECT(prefill(alone, ids, 41), LLM_OK);
    own = session_stats(alone);
    EXPECT(own.reused_tokens, 32);
    EXPECT(own.prefilled_tokens, 9);
    EXPECT(own.tokens, 41);
    EXPECT(session_stats(b).decoded_tokens, 1);
    same(alone, b);
    /* The pool outlives its handle, and goes with its last session. */
    llm_kv_pool_free(pool);
    llm_session_free(a);
    EXPECT(llm_session_decode(b, ids[41], NULL, NULL), LLM_OK);
    EXPECT(llm_session_decode(alone, ids[41], NULL, NULL), LLM_OK);
    same(alone, b);
    llm_session_free(b);
    llm_session_free(alone);
}

static void pages_are_reserved_pinned_evicted_and_swapped(llm_model *model) {
    llm_kv_pool *pool = pool_of(model, 4, 3), *again = NULL;
    llm_session *a = session_of(model, pool, 1), *b = session_of(model, pool, 0);
    llm_error *error = NULL;
    uint64_t freed = 99, moved = 99;
    size_t tokens = 99;
    int64_t needed = 0;
    EXPECT(llm_kv_pool_retain(pool, &again), LLM_OK);
    EXPECT(prefill(a, ids, 33), LLM_OK);
    EXPECT(llm_session_reserve(b, 32, &error), LLM_KV_FULL);
    llm_error_free(error);
    EXPECT(stats(pool).used, 3);
    EXPECT(llm_session_reserve(b, 16, NULL), LLM_OK);
    EXPECT(llm_session_reserve(b, 1u << 30, NULL), LLM_CONTEXT_FULL);
    EXPECT(stats(pool).free, 0);
    EXPECT(prefill(b, ids + 34, 17), LLM_KV_FULL);
    EXPECT(session_stats(b).tokens, 0);
    EXPECT(llm_session_swap_out(b, NULL), LLM_OK); /* holds nothing: gives back what was reserved */
    EXPECT(llm_session_swap_out(a, NULL), LLM_OK);
    EXPECT(session_stats(a).swapped_out, 1);
    EXPECT(session_stats(a).pages, 0);
    EXPECT(stats(pool).swapped_bytes, 3 * stats(pool).page_bytes);
    EXPECT(llm_kv_pool_clear_cache(again), LLM_OK);
    EXPECT(stats(pool).free, 4);
    EXPECT(prefill(b, ids, 33), LLM_OK);
    EXPECT(llm_session_pin(b, &tokens), LLM_OK);
    EXPECT(tokens, 32);
    EXPECT(stats(pool).pinned, 2);
    EXPECT(llm_session_swap_in(a, NULL), LLM_OK); /* shares what b computed */
    EXPECT(stats(pool).swapped_bytes, 0);
    EXPECT(session_stats(a).shared_pages, 2);
    same(a, b);
    EXPECT(llm_session_decode(a, ids[33], NULL, NULL), LLM_OK);
    EXPECT(llm_session_decode(b, ids[33], NULL, NULL), LLM_OK);
    same(a, b);
    EXPECT(llm_kv_pool_resize(pool, 3 * stats(pool).page_bytes, &error), LLM_KV_FULL);
    EXPECT(llm_error_detail(error, LLM_DETAIL_NEEDED, &needed), LLM_OK);
    EXPECT(needed, 4);
    llm_error_free(error);
    EXPECT(llm_kv_pool_resize(pool, 1, NULL), LLM_INVALID_ARG);
    EXPECT(llm_session_reset(a), LLM_OK);
    llm_session_free(b);
    EXPECT(stats(pool).used, 0);
    EXPECT(stats(pool).cached, 2);
    EXPECT(llm_kv_pool_evict(pool, UINT64_MAX, &freed), LLM_OK);
    EXPECT(freed, 0); /* pinned */
    EXPECT(prefill(a, ids, 33), LLM_OK);
    EXPECT(llm_session_unpin(a, NULL), LLM_OK);
    EXPECT(llm_session_reset(a), LLM_OK);
    EXPECT(llm_kv_pool_evict(pool, 1, &freed), LLM_OK);
    EXPECT(freed, stats(pool).page_bytes);
    EXPECT(llm_kv_pool_defrag(pool, &moved), LLM_OK);
    EXPECT(llm_kv_pool_resize(pool, 8 * stats(pool).page_bytes, NULL), LLM_OK);
    EXPECT(stats(pool).total, 8);
    EXPECT(llm_kv_pool_clear_cache(pool), LLM_OK);
    EXPECT(stats(pool).free, 8);
    llm_kv_pool_free(pool);
    llm_kv_pool_free(again);
    EXPECT(prefill(a, ids, 3), LLM_OK);
    llm_session_free(a);
}

static void wrong_handles(llm_runtime *runtime, llm_model *model, const char *path) {
    llm_model *twin = NULL;
    llm_kv_pool *pool = pool_of(model, 4, 0);
    llm_session *session = (llm_session *)1, *lent = session_of(model, NULL, 0), *fork = (llm_session *)1;
    llm_sampler *sampler = NULL;
    llm_generation *generation = NULL;
    size_t tokens = 7;
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &twin, NULL), LLM_OK);
    EXPECT(llm_session_new(twin, pool, NULL, &session, NULL), LLM_MISMATCH);
    TRUE(session == NULL);
    EXPECT(llm_session_new(model, (llm_kv_pool *)model, NULL, &session, NULL), LLM_INVALID_ARG);
    EXPECT(llm_kv_pool_evict((llm_kv_pool *)lent, 1, NULL), LLM_INVALID_ARG);
    EXPECT(prefill(lent, ids, 3), LLM_OK);
    EXPECT(llm_session_swap_out(lent, NULL), LLM_BUDGET); /* a private pool has nowhere to swap to */
    EXPECT(llm_session_match_prefix(lent, ids, 2, &tokens), LLM_OK);
    EXPECT(tokens, 2);
    EXPECT(llm_session_match_prefix(lent, NULL, 2, &tokens), LLM_NULL_ARG);
    EXPECT(llm_session_pin(lent, &tokens), LLM_OK);
    EXPECT(tokens, 0);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_new(lent, sampler, NULL, &generation, NULL), LLM_OK);
    EXPECT(llm_session_fork(lent, &fork, NULL), LLM_BUSY);
    TRUE(fork == NULL);
    EXPECT(llm_session_reserve(lent, 1, NULL), LLM_BUSY);
    EXPECT(llm_session_match_prefix(lent, ids, 2, &tokens), LLM_BUSY);
    EXPECT(llm_session_pin(lent, NULL), LLM_BUSY);
    EXPECT(llm_session_unpin(lent, NULL), LLM_BUSY);
    EXPECT(llm_session_swap_out(lent, NULL), LLM_BUSY);
    EXPECT(llm_session_swap_in(lent, NULL), LLM_BUSY);
    EXPECT(llm_session_get_stats(lent, (llm_session_stats[]){{sizeof(llm_session_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}}}), LLM_BUSY);
    llm_generation_free(generation);
    EXPECT(llm_session_fork(lent, &fork, NULL), LLM_OK);
    llm_sampler_free(sampler);
    llm_session_free(lent);
    llm_session_free(fork);
    llm_kv_pool_free(pool);
    llm_model_free(twin);
}

/* A callback may look at the pool whose session it is called for, but not at the session. */
struct inside {
    llm_kv_pool *pool;
    llm_session *session;
};

static llm_control look(void *user_data, uint32_t total, uint32_t reused, uint32_t done, uint64_t milliseconds) {
    struct inside *inside = user_data;
    llm_session *fork;
    (void)milliseconds;
    TRUE(reused == 0 && done <= total);
    EXPECT(stats(inside->pool).used, (total + 15) / 16); /* pages are taken at the beginning of a call */
    EXPECT(llm_session_fork(inside->session, &fork, NULL), LLM_REENTRANT);
    EXPECT(llm_session_swap_out(inside->session, NULL), LLM_REENTRANT);
    EXPECT(llm_kv_pool_defrag(inside->pool, NULL), LLM_OK);
    return LLM_CONTROL_CONTINUE;
}

static void callbacks(llm_model *model) {
    struct inside inside;
    llm_session_options *options = NULL;
    inside.pool = pool_of(model, 8, 0);
    EXPECT(llm_session_options_new(&options), LLM_OK);
    EXPECT(llm_session_options_set_chunk_tokens(options, 7), LLM_OK);
    EXPECT(llm_session_new(model, inside.pool, options, &inside.session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(inside.session, ids, 40, look, &inside, NULL, NULL, NULL, NULL), LLM_OK);
    llm_session_options_free(options);
    llm_session_free(inside.session);
    llm_kv_pool_free(inside.pool);
}

/* Sessions of one pool on several threads, and the pool's numbers meanwhile. */
struct worker {
    llm_model *model;
    llm_kv_pool *pool;
    int number;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    llm_session *fork = NULL, *session = session_of(worker->model, worker->pool, 0);
    int i;
    for (i = 0; i < 4; i++) {
        EXPECT(prefill(session, ids + worker->number, 20), LLM_OK);
        EXPECT(llm_session_fork(session, &fork, NULL), LLM_OK);
        EXPECT(llm_session_decode(fork, ids[i], NULL, NULL), LLM_OK);
        llm_session_free(fork);
        EXPECT(llm_kv_pool_evict(worker->pool, 1, NULL), LLM_OK);
        stats(worker->pool);
        EXPECT(llm_session_reset(session), LLM_OK);
    }
    llm_session_free(session);
    return NULL;
}

static void threads(llm_model *model) {
    pthread_t thread[3];
    struct worker workers[3];
    llm_kv_pool *pool = pool_of(model, 12, 0);
    int i;
    for (i = 0; i < 3; i++) {
        workers[i].model = model, workers[i].pool = pool, workers[i].number = i;
        if (pthread_create(&thread[i], NULL, work, &workers[i]) != 0) exit(2);
    }
    for (i = 0; i < 3; i++) pthread_join(thread[i], NULL);
    EXPECT(stats(pool).used, 0);
    EXPECT(llm_kv_pool_clear_cache(pool), LLM_OK);
    EXPECT(stats(pool).free, 12);
    llm_kv_pool_free(pool);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    int i;
    if (argc < 2) return 2;
    for (i = 0; i < TOKENS; i++) ids[i] = 3 + (i * 37) % 400;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    if (failures > 0) return 1;
    options(model);
    forks_share_and_go_their_own_way(model);
    pages_are_reserved_pinned_evicted_and_swapped(model);
    wrong_handles(runtime, model, argv[1]);
    callbacks(model);
    threads(model);
    llm_model_free(model);
    llm_runtime_free(runtime);
    return failures > 0;
}

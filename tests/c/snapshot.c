/* Snapshots of sessions and samplers, whole and damaged: snapshot MODEL.llm FILE */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

#define STEPS 20
static const char chain[] = "bias;penalties=1.2,0.1,0.1,16;dry=0.8;top_k=60;temperature=0.9;mirostat=4";

static llm_session *session_of(llm_model *model, llm_kv_pool *pool) {
    llm_session *session = NULL;
    EXPECT(llm_session_new(model, pool, NULL, &session, NULL), LLM_OK);
    return session;
}

static llm_sampler *sampler_of(llm_constraint *constraint) {
    llm_sampling_params params;
    llm_sampler *sampler = NULL;
    llm_token id = 300;
    float value = 0.5f;
    params.struct_size = sizeof params;
    EXPECT(llm_sampling_params_init(&params), LLM_OK);
    params.seed = 11;
    EXPECT(llm_sampler_new_chain(&params, chain, LLM_NTS, &sampler, NULL), LLM_OK);
    EXPECT(llm_sampler_set_bias(sampler, &id, &value, 1), LLM_OK);
    EXPECT(llm_sampler_set_constraint(sampler, constraint), LLM_OK);
    return sampler;
}

static void go_on(llm_session *session, llm_sampler *sampler, llm_token *ids) {
    int i;
    for (i = 0; i < STEPS; i++) {
        EXPECT(llm_sampler_sample(sampler, session, &ids[i], NULL, NULL), LLM_OK);
        EXPECT(llm_sampler_accept(sampler, &ids[i], 1, NULL), LLM_OK);
        EXPECT(llm_session_decode(session, ids[i], NULL, NULL), LLM_OK);
    }
}

static uint32_t length(llm_session *session) {
    uint32_t now = 0;
    EXPECT(llm_session_length(session, &now), LLM_OK);
    return now;
}

static llm_kv_stats stats(const llm_kv_pool *pool) {
    llm_kv_stats now;
    now.struct_size = sizeof now;
    EXPECT(llm_kv_pool_stats(pool, &now), LLM_OK);
    return now;
}

static unsigned char *taken(llm_session *session, llm_sampler *sampler, size_t *size) {
    unsigned char *bytes;
    size_t needed = 0;
    EXPECT(llm_session_snapshot_size(session, sampler, size), LLM_OK);
    bytes = malloc(*size);
    if (bytes == NULL) exit(2);
    memset(bytes, 0x5A, *size);
    EXPECT(llm_session_snapshot_buffer(session, sampler, bytes, *size - 1, &needed, NULL), LLM_BUFFER_SMALL);
    TRUE(needed == *size && bytes[0] == 0x5A);
    EXPECT(llm_session_snapshot_buffer(session, sampler, NULL, *size, NULL, NULL), LLM_NULL_ARG);
    EXPECT(llm_session_snapshot_buffer(session, sampler, bytes, *size, &needed, NULL), LLM_OK);
    EXPECT(needed, *size);
    return bytes;
}

static void the_same_tokens_follow(llm_model *model, const char *path) {
    llm_kv_pool *pool = NULL;
    llm_session *session, *other;
    llm_sampler *sampler = sampler_of(NULL), *loaded = NULL;
    llm_token prompt[5] = {1, 40, 41, 300, 60}, ids[STEPS], again[STEPS];
    llm_snapshot_info info;
    unsigned char fingerprint[32], *bytes;
    size_t size = 0;
    EXPECT(llm_kv_pool_new(model, NULL, &pool, NULL), LLM_OK);
    session = session_of(model, pool);
    EXPECT(llm_session_prefill(session, prompt, 5, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    go_on(session, sampler, ids);
    bytes = taken(session, sampler, &size);
    EXPECT(llm_session_snapshot_path(session, sampler, path, LLM_NTS, NULL), LLM_OK);
    go_on(session, sampler, ids);

    info.struct_size = sizeof info;
    EXPECT(llm_snapshot_inspect_buffer(bytes, size, &info, NULL), LLM_OK);
    EXPECT(llm_model_fingerprint(model, fingerprint), LLM_OK);
    TRUE(memcmp(fingerprint, info.fingerprint, 32) == 0);
    EXPECT(info.tokens, 5 + STEPS);
    EXPECT(info.has_sampler, 1);
    EXPECT(info.bytes, size);
    EXPECT(info.determinism, LLM_DETERMINISM_BATCH);
    EXPECT(info.kv_type, stats(pool).kv_type);
    EXPECT(llm_snapshot_inspect_path(path, LLM_NTS, &info, NULL), LLM_OK);
    EXPECT(info.bytes, size);

    other = session_of(model, pool);
    EXPECT(llm_sampler_new(NULL, &loaded, NULL), LLM_OK); /* of other parameters: the snapshot has them */
    EXPECT(llm_session_restore_buffer(other, loaded, bytes, size, NULL), LLM_OK);
    go_on(other, loaded, again);
    TRUE(memcmp(ids, again, sizeof ids) == 0);
    EXPECT(llm_session_restore_buffer(other, loaded, bytes, size, NULL), LLM_BAD_STATE);
    EXPECT(llm_session_reset(other), LLM_OK);
    EXPECT(llm_session_restore_path(other, loaded, path, LLM_NTS, NULL), LLM_OK);
    memset(again, 0, sizeof again);
    go_on(other, loaded, again);
    TRUE(memcmp(ids, again, sizeof ids) == 0);

    /* Without a sampler, in either direction. */
    EXPECT(llm_session_reset(other), LLM_OK);
    EXPECT(llm_session_restore_path(other, NULL, path, LLM_NTS, NULL), LLM_OK);
    EXPECT(length(other), 5 + STEPS);
    free(bytes);
    bytes = taken(other, NULL, &size);
    EXPECT(llm_session_reset(other), LLM_OK);
    EXPECT(llm_session_restore_buffer(other, loaded, bytes, size, NULL), LLM_NOT_FOUND);
    EXPECT(length(other), 0);
    EXPECT(llm_session_restore_buffer(other, NULL, bytes, size, NULL), LLM_OK);

    /* A page of another size is another pool's. */
    {
        llm_kv_options *options = NULL;
        llm_kv_pool *small = NULL;
        llm_session *misfit;
        EXPECT(llm_kv_options_new(&options), LLM_OK);
        EXPECT(llm_kv_options_set_page_tokens(options, 16), LLM_OK);
        EXPECT(llm_kv_pool_new(model, options, &small, NULL), LLM_OK);
        misfit = session_of(model, small);
        EXPECT(llm_session_restore_buffer(misfit, NULL, bytes, size, NULL), LLM_MISMATCH);
        llm_session_free(misfit);
        llm_kv_pool_free(small);
        llm_kv_options_free(options);
    }
    free(bytes);
    llm_kv_pool_free(pool);
    llm_sampler_free(sampler);
    llm_sampler_free(loaded);
    llm_session_free(session);
    llm_session_free(other);
}

static void damage_changes_nothing(llm_model *model) {
    llm_kv_pool *pool = NULL;
    llm_session *session, *empty;
    llm_sampler *sampler = sampler_of(NULL);
    llm_token prompt[3] = {1, 40, 41}, ids[STEPS], first, second;
    unsigned char *bytes, *copy;
    llm_snapshot_info info;
    llm_kv_stats before;
    size_t size = 0, i;
    EXPECT(llm_kv_pool_new(model, NULL, &pool, NULL), LLM_OK);
    session = session_of(model, pool), empty = session_of(model, pool);
    EXPECT(llm_session_prefill(session, prompt, 3, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    go_on(session, sampler, ids);
    bytes = taken(session, sampler, &size);
    EXPECT(llm_sampler_sample(sampler, session, &first, NULL, NULL), LLM_OK);
    copy = malloc(size);
    if (copy == NULL) exit(2);
    before = stats(pool);
    info.struct_size = sizeof info;
    for (i = 0; i < 120; i++) {
        size_t at = i < 60 ? i * 2 : size / 60 * (i - 60);
        memcpy(copy, bytes, size);
        copy[at] ^= (unsigned char)(1u << i % 8);
        TRUE(llm_session_restore_buffer(empty, sampler, copy, size, NULL) < 0);
        TRUE(llm_session_restore_buffer(empty, NULL, copy, size, NULL) < 0);
        TRUE(llm_snapshot_inspect_buffer(copy, size, &info, NULL) < 0);
        TRUE(llm_session_restore_buffer(empty, sampler, bytes, at, NULL) < 0);
    }
    EXPECT(length(empty), 0);
    TRUE(stats(pool).used == before.used && stats(pool).cached == before.cached);
    EXPECT(llm_sampler_sample(sampler, session, &second, NULL, NULL), LLM_OK);
    EXPECT(second, first);
    EXPECT(llm_session_restore_buffer(empty, NULL, NULL, size, NULL), LLM_NULL_ARG);
    EXPECT(llm_snapshot_inspect_path("/nonexistent/snapshot", LLM_NTS, &info, NULL), LLM_NOT_FOUND);
    EXPECT(llm_session_restore_path(empty, NULL, "/nonexistent/snapshot", LLM_NTS, NULL), LLM_NOT_FOUND);
    EXPECT(llm_session_snapshot_path(session, NULL, "/nonexistent/snapshot", LLM_NTS, NULL), LLM_NOT_FOUND);
    info.struct_size = 4;
    EXPECT(llm_snapshot_inspect_buffer(bytes, size, &info, NULL), LLM_INVALID_ARG);
    free(bytes);
    free(copy);
    llm_session_free(session);
    llm_session_free(empty);
    llm_sampler_free(sampler);
    llm_kv_pool_free(pool);
}

static void a_constraint_goes_on_where_it_stood(llm_model *model) {
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"kind\":{\"enum\":[\"cat\",\"dog\",\"parrot\"]},\"legs\":{\"type\":\"integer\","
        "\"minimum\":2,\"maximum\":4}},\"required\":[\"kind\",\"legs\"],\"additionalProperties\":false}";
    llm_tokenizer *tokenizer = NULL;
    llm_constraint *constraint = NULL, *other = NULL;
    llm_session *session = session_of(model, NULL), *restored = session_of(model, NULL);
    llm_sampler *sampler, *loaded, *without, *wrong;
    llm_token prompt[3] = {1, 40, 41}, id, same;
    unsigned char *bytes;
    size_t size = 0;
    int i;
    EXPECT(llm_model_tokenizer(model, &tokenizer), LLM_OK);
    EXPECT(llm_constraint_compile_json_schema(tokenizer, schema, LLM_NTS, 0, 0, NULL, &constraint, NULL), LLM_OK);
    EXPECT(llm_constraint_compile_regex(tokenizer, "[x-z]+", LLM_NTS, 0, 0, NULL, &other, NULL), LLM_OK);
    sampler = sampler_of(constraint), loaded = sampler_of(constraint);
    without = sampler_of(NULL), wrong = sampler_of(other);
    EXPECT(llm_session_prefill(session, prompt, 3, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    for (i = 0; i < 8; i++) {
        EXPECT(llm_sampler_sample(sampler, session, &id, NULL, NULL), LLM_OK);
        EXPECT(llm_sampler_accept(sampler, &id, 1, NULL), LLM_OK);
        EXPECT(llm_session_decode(session, id, NULL, NULL), LLM_OK);
    }
    bytes = taken(session, sampler, &size);
    EXPECT(llm_session_restore_buffer(restored, without, bytes, size, NULL), LLM_MISMATCH);
    EXPECT(llm_session_restore_buffer(restored, wrong, bytes, size, NULL), LLM_MISMATCH);
    EXPECT(length(restored), 0);
    EXPECT(llm_session_restore_buffer(restored, loaded, bytes, size, NULL), LLM_OK);
    for (i = 0; i < 8; i++) {
        EXPECT(llm_sampler_sample(sampler, session, &id, NULL, NULL), LLM_OK);
        EXPECT(llm_sampler_sample(loaded, restored, &same, NULL, NULL), LLM_OK);
        EXPECT(same, id);
        EXPECT(llm_sampler_accept(sampler, &id, 1, NULL), LLM_OK);
        EXPECT(llm_sampler_accept(loaded, &same, 1, NULL), LLM_OK);
        EXPECT(llm_session_decode(session, id, NULL, NULL), LLM_OK);
        EXPECT(llm_session_decode(restored, same, NULL, NULL), LLM_OK);
    }
    free(bytes);
    llm_session_free(session);
    llm_session_free(restored);
    llm_sampler_free(sampler);
    llm_sampler_free(loaded);
    llm_sampler_free(without);
    llm_sampler_free(wrong);
    llm_constraint_free(constraint);
    llm_constraint_free(other);
    llm_tokenizer_free(tokenizer);
}

static void lent_handles_are_busy(llm_model *model, const char *path) {
    llm_session *session = session_of(model, NULL), *empty = session_of(model, NULL);
    llm_sampler *sampler = sampler_of(NULL), *idle = sampler_of(NULL);
    llm_generation *generation = NULL;
    llm_token prompt[3] = {1, 40, 41};
    unsigned char bytes[8] = {0};
    size_t size = 0;
    EXPECT(llm_session_prefill(session, prompt, 3, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, NULL, &generation, NULL), LLM_OK);
    EXPECT(llm_session_snapshot_size(session, NULL, &size), LLM_BUSY);
    EXPECT(llm_session_snapshot_buffer(session, NULL, bytes, 8, NULL, NULL), LLM_BUSY);
    EXPECT(llm_session_snapshot_path(session, idle, path, LLM_NTS, NULL), LLM_BUSY);
    EXPECT(llm_session_restore_buffer(session, idle, bytes, 8, NULL), LLM_BUSY);
    EXPECT(llm_session_restore_buffer(empty, sampler, bytes, 8, NULL), LLM_BUSY);
    EXPECT(llm_session_restore_path(empty, sampler, path, LLM_NTS, NULL), LLM_BUSY);
    EXPECT(llm_session_restore_buffer(empty, (llm_sampler *)session, bytes, 8, NULL), LLM_INVALID_ARG);
    llm_generation_free(generation);
    EXPECT(llm_session_snapshot_size(session, sampler, &size), LLM_OK);
    llm_session_free(session);
    llm_session_free(empty);
    llm_sampler_free(sampler);
    llm_sampler_free(idle);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    if (argc < 3) return 2;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    if (failures > 0) return 1;
    the_same_tokens_follow(model, argv[2]);
    damage_changes_nothing(model);
    a_constraint_goes_on_where_it_stood(model);
    lent_handles_are_busy(model, argv[2]);
    llm_model_free(model);
    llm_runtime_free(runtime);
    return failures > 0;
}

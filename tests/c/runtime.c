/* What a runtime tells of itself and gives back, plans, and the pipeline of a sampler on a host's row: runtime MODEL.llm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

static llm_token ids[600];

static llm_memory_use used(llm_runtime *runtime) {
    llm_memory_use now;
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    EXPECT(llm_runtime_memory_use(runtime, &now), LLM_OK);
    TRUE(now.weights + now.kv + now.scratch == now.total);
    return now;
}

static void devices(llm_runtime *runtime) {
    llm_device_info info;
    memset(&info, 0x55, sizeof info);
    info.struct_size = sizeof info;
    EXPECT(llm_runtime_device_count(runtime), 1);
    EXPECT(llm_runtime_device_count(NULL), 0);
    EXPECT(llm_runtime_device_info(runtime, 0, &info), LLM_OK);
    EXPECT(info.kind, LLM_DEVICE_CPU);
    TRUE(strlen(info.name) > 0 && strlen(info.name) < sizeof info.name);
    TRUE(info.threads > 0 && info.total_bytes >= info.free_bytes && info.total_bytes > 0);
    TRUE(info.determinism >> LLM_DETERMINISM_PORTABLE & 1);
    EXPECT(llm_runtime_device_info(runtime, 1, &info), LLM_NOT_FOUND);
    info.struct_size = 4;
    EXPECT(llm_runtime_device_info(runtime, 0, &info), LLM_INVALID_ARG);
}

static void plans_hold(llm_runtime *runtime, llm_model *model) {
    llm_session_options *options = NULL;
    llm_kv_options *kv = NULL;
    llm_memory_plan plan, twice, narrow;
    llm_session *session = NULL;
    llm_memory_use before = used(runtime), now;
    plan.struct_size = twice.struct_size = narrow.struct_size = sizeof plan;
    EXPECT(llm_session_options_new(&options), LLM_OK);
    EXPECT(llm_session_options_set_max_tokens(options, 600), LLM_OK);
    EXPECT(llm_session_options_set_chunk_tokens(options, 100), LLM_OK);
    EXPECT(llm_model_plan(model, NULL, options, 1, 0, &plan, NULL), LLM_OK);
    EXPECT(plan.tokens, 600);
    TRUE(plan.weights_mapped > 0 && plan.weights_copied == 0);
    TRUE(plan.peak == plan.kv_total + plan.scratch && plan.host_bytes == plan.peak && plan.device_bytes == 0);
    EXPECT(llm_session_new(model, NULL, options, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 600, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    now = used(runtime);
    EXPECT(now.kv - before.kv, plan.kv_total);
    EXPECT(now.scratch - before.scratch, plan.scratch);
    llm_session_free(session);
    EXPECT(used(runtime).total, before.total);
    EXPECT(llm_model_plan(model, NULL, options, 2, 0, &twice, NULL), LLM_OK);
    EXPECT(twice.peak, 2 * plan.peak);
    /* The largest context is the largest whose peak is within the limit. */
    EXPECT(llm_model_plan(model, NULL, options, 1, plan.peak, &twice, NULL), LLM_OK);
    TRUE(twice.limit == plan.peak && twice.largest_context >= 600 && twice.largest_context < 600 + 64);
    EXPECT(llm_model_plan(model, NULL, options, 1, 1, &twice, NULL), LLM_OK);
    EXPECT(twice.largest_context, 0);
    EXPECT(llm_kv_options_new(&kv), LLM_OK);
    EXPECT(llm_kv_options_set_type(kv, LLM_KV_TYPE_I8), LLM_OK);
    EXPECT(llm_model_plan(model, kv, options, 1, 0, &narrow, NULL), LLM_OK);
    TRUE(narrow.kv_per_token < plan.kv_per_token && narrow.scratch == plan.scratch);
    EXPECT(llm_model_plan(model, kv, options, 0, 0, &narrow, NULL), LLM_INVALID_ARG);
    EXPECT(llm_model_plan(model, (llm_kv_options *)options, NULL, 1, 0, &narrow, NULL), LLM_INVALID_ARG);
    narrow.struct_size = 4;
    EXPECT(llm_model_plan(model, NULL, NULL, 1, 0, &narrow, NULL), LLM_INVALID_ARG);
    llm_kv_options_free(kv);
    llm_session_options_free(options);
}

static void trimming(llm_runtime *runtime, llm_model *model) {
    llm_kv_pool *pool = NULL;
    llm_session *session = NULL;
    llm_memory_use before = used(runtime);
    uint64_t back = 99, cached;
    EXPECT(llm_kv_pool_new(model, NULL, &pool, NULL), LLM_OK);
    EXPECT(llm_session_new(model, pool, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 200, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_runtime_trim(runtime, LLM_TRIM_HARD, &back), LLM_OK);
    EXPECT(back, 0); /* in use */
    llm_session_free(session);
    cached = used(runtime).kv - before.kv;
    EXPECT(llm_runtime_trim(runtime, LLM_TRIM_MILD, &back), LLM_OK);
    TRUE(back < cached); /* the page that was not full */
    EXPECT(llm_runtime_trim(runtime, LLM_TRIM_HARD, NULL), LLM_OK);
    EXPECT(used(runtime).kv, before.kv);
    EXPECT(llm_runtime_trim(runtime, 2, NULL), LLM_INVALID_ARG);
    llm_kv_pool_free(pool);
    EXPECT(llm_runtime_trim(runtime, LLM_TRIM_HARD, &back), LLM_OK);
    EXPECT(back, 0);
}

static void on_log(void *user_data, int32_t level, const char *text, size_t text_length) {
    (void)level, (void)text, (void)text_length;
    ++*(int *)user_data;
}

static void log_levels(const char *path) {
    llm_runtime_options *options = NULL;
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    int records = 0, before;
    EXPECT(llm_runtime_options_new(&options), LLM_OK);
    EXPECT(llm_runtime_options_set_log(options, LLM_LOG_ERROR, on_log, &records, NULL), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_OK);
    llm_runtime_options_free(options);
    EXPECT(records, 0);
    EXPECT(llm_runtime_set_log_level(runtime, LLM_LOG_DEBUG), LLM_OK);
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    llm_model_free(model);
    TRUE(records > 0);
    before = records;
    EXPECT(llm_runtime_set_log_level(runtime, LLM_LOG_OFF), LLM_OK);
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    EXPECT(records, before);
    EXPECT(llm_runtime_set_log_level(runtime, 9), LLM_INVALID_ARG);
    llm_model_free(model);
    llm_runtime_free(runtime);

    /* One that begins silent can be turned up. */
    records = 0;
    EXPECT(llm_runtime_options_new(&options), LLM_OK);
    EXPECT(llm_runtime_options_set_log(options, LLM_LOG_OFF, on_log, &records, NULL), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_OK);
    llm_runtime_options_free(options);
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    llm_model_free(model);
    EXPECT(records, 0);
    EXPECT(llm_runtime_set_log_level(runtime, LLM_LOG_INFO), LLM_OK);
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    TRUE(records > 0);
    llm_model_free(model);
    llm_runtime_free(runtime);
}

static void the_pipeline_on_a_row(llm_model *model) {
    llm_sampler *sampler = NULL;
    llm_session *session = NULL;
    llm_model_info info;
    float *row, probability = 0, same = 0;
    llm_token chosen = -1, other = -1;
    size_t i, left = 0;
    info.struct_size = sizeof info;
    EXPECT(llm_model_get_info(model, &info), LLM_OK);
    row = malloc(info.vocabulary * sizeof *row);
    if (row == NULL) exit(2);
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 9, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_session_copy_logits(session, row, info.vocabulary, NULL), LLM_OK);
    EXPECT(llm_sampler_new_chain(NULL, "penalties=1.5;top_k=5;temperature=0.7", LLM_NTS, &sampler, NULL), LLM_OK);
    EXPECT(llm_sampler_accept(sampler, ids, 9, NULL), LLM_OK);
    EXPECT(llm_sampler_sample(sampler, session, &other, &same, NULL), LLM_OK);
    EXPECT(llm_sampler_apply(sampler, 9, row, info.vocabulary, &chosen, &probability, NULL), LLM_OK);
    EXPECT(chosen, other);
    TRUE(probability == same);
    for (i = 0; i < info.vocabulary; i++) left += row[i] > -HUGE_VALF;
    EXPECT(left, 5);
    TRUE(row[chosen] > -HUGE_VALF);
    EXPECT(llm_sampler_apply(sampler, 9, row, info.vocabulary, NULL, NULL, NULL), LLM_OK);
    row[3] = HUGE_VALF;
    EXPECT(llm_sampler_apply(sampler, 9, row, info.vocabulary, &chosen, NULL, NULL), LLM_INVALID_ARG);
    TRUE(row[3] == HUGE_VALF);
    for (i = 0; i < info.vocabulary; i++) row[i] = -HUGE_VALF;
    EXPECT(llm_sampler_apply(sampler, 9, row, info.vocabulary, &chosen, NULL, NULL), LLM_DEAD_END);
    EXPECT(llm_sampler_apply(sampler, 9, row, 0, NULL, NULL, NULL), LLM_INVALID_ARG);
    EXPECT(llm_sampler_apply(sampler, 9, NULL, 1, NULL, NULL, NULL), LLM_NULL_ARG);
    EXPECT(llm_sampler_apply((llm_sampler *)session, 9, row, 1, NULL, NULL, NULL), LLM_INVALID_ARG);
    free(row);
    llm_sampler_free(sampler);
    llm_session_free(session);
}

static void an_echo_comes_first(llm_model *model) {
    llm_generation_options *options = NULL;
    llm_generation *generation = NULL;
    llm_sampler *sampler = NULL;
    llm_session *session = NULL;
    const llm_token *told = NULL;
    size_t count = 0;
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 9, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_options_new(&options), LLM_OK);
    EXPECT(llm_generation_options_set_echo(options, 1), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, options, &generation, NULL), LLM_OK);
    EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_MORE);
    EXPECT(llm_generation_ids(generation, &told, &count), LLM_OK);
    TRUE(count == 9 && memcmp(told, ids, 9 * sizeof *ids) == 0);
    EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_MORE);
    EXPECT(llm_generation_ids(generation, &told, &count), LLM_OK);
    EXPECT(count, 1);
    llm_generation_free(generation);
    llm_generation_options_free(options);
    llm_sampler_free(sampler);
    llm_session_free(session);
}

static void an_instruction_set_by_name(void) {
    llm_runtime_options *options = NULL;
    llm_runtime *runtime = NULL;
    EXPECT(llm_runtime_options_new(&options), LLM_OK);
    EXPECT(setenv("LLM_ISA", "abacus", 1), 0);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_INVALID_ARG);
    EXPECT(llm_runtime_options_set_isa(options, "scalar", LLM_NTS), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_INVALID_ARG);
    EXPECT(llm_runtime_options_set_environment(options, 0), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_OK);
    llm_runtime_free(runtime);
    EXPECT(llm_runtime_options_set_isa(options, "abacus", LLM_NTS), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_INVALID_ARG);
    EXPECT(llm_runtime_options_set_isa(NULL, "scalar", LLM_NTS), LLM_NULL_ARG);
    EXPECT(llm_runtime_options_set_environment(NULL, 0), LLM_NULL_ARG);
    llm_runtime_options_free(options);
}

static void placed_and_locked(const char *path) {
    const uint32_t cores[] = { 0, 100000 };
    llm_runtime_options *options = NULL;
    llm_model_options *opening = NULL;
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_status status;
    EXPECT(llm_runtime_options_new(&options), LLM_OK);
    EXPECT(llm_runtime_options_set_priority(NULL, 1), LLM_NULL_ARG);
    EXPECT(llm_runtime_options_set_priority(options, 20), LLM_OK);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_INVALID_ARG);
    EXPECT(llm_runtime_options_set_priority(options, 19), LLM_OK);
    EXPECT(llm_runtime_options_set_affinity(options, cores, 2), LLM_OK);
    EXPECT(llm_runtime_options_set_affinity(options, NULL, 2), LLM_NULL_ARG);
    EXPECT(llm_runtime_new(options, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_options_new(&opening), LLM_OK);
    EXPECT(llm_model_options_set_load_mode(opening, 3), LLM_INVALID_ARG);
    EXPECT(llm_model_options_set_load_mode(opening, LLM_LOAD_MAP_AND_LOCK), LLM_OK);
    status = llm_model_open_path(runtime, path, LLM_NTS, opening, NULL, &model, NULL);
    TRUE(status == LLM_OK ? model != NULL : status == LLM_IO); /* as the limit on locked memory allows */
    llm_model_free(model);
    llm_model_options_free(opening);
    llm_runtime_options_free(options);
    llm_runtime_free(runtime);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    int i;
    if (argc < 2) return 2;
    for (i = 0; i < 600; i++) ids[i] = 3 + (i * 37) % 400;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    if (failures > 0) return 1;
    devices(runtime);
    plans_hold(runtime, model);
    trimming(runtime, model);
    log_levels(argv[1]);
    placed_and_locked(argv[1]);
    the_pipeline_on_a_row(model);
    an_echo_comes_first(model);
    llm_model_free(model);
    llm_runtime_free(runtime);
    an_instruction_set_by_name(); /* last: it leaves the variable set */
    return failures > 0;
}

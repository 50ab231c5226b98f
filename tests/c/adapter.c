/* What a host can do with adapters: adapter MODEL.llm ADAPTER.llm */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llm.h>
#include "expect.h"

#define TOKENS 20
static llm_token ids[TOKENS];
static float plain[8192], adapted[8192], again[8192];

static size_t run(llm_session *session, float *logits) {
    size_t count = 0;
    EXPECT(llm_session_reset(session), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, TOKENS, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_session_copy_logits(session, logits, 8192, &count), LLM_OK);
    return count * sizeof *logits;
}

static void count_drop(void *user_data) { ++*(int *)user_data; }

/* Whether a snapshot of the session names adapters. */
static int names_adapters(llm_session *session) {
    static unsigned char bytes[1 << 22];
    const unsigned char none[32] = {0};
    llm_snapshot_info info;
    size_t size = 0;
    info.struct_size = sizeof info;
    EXPECT(llm_session_snapshot_buffer(session, NULL, bytes, sizeof bytes, &size, NULL), LLM_OK);
    EXPECT(llm_snapshot_inspect_buffer(bytes, size, &info, NULL), LLM_OK);
    return memcmp(info.adapters, none, sizeof none) != 0;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_adapter *adapter = NULL, *copy = NULL;
    llm_session *session = NULL;
    llm_cancel *cancel = NULL;
    llm_error *error = NULL;
    llm_adapter_info info;
    const llm_adapter *both[2];
    float scales[2] = {1, 1};
    static unsigned char room[(1 << 20) + 64];
    /* At a multiple of 64, so that it is used in place. */
    unsigned char *bytes = room + (64 - (uintptr_t)room % 64) % 64;
    size_t size, length;
    uint32_t held = 0;
    int i, dropped = 0;
    FILE *file;

    if (argc < 3 || (file = fopen(argv[2], "rb")) == NULL) return 2;
    length = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    for (i = 0; i < TOKENS; i++) ids[i] = 1 + i * 7 % 300;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);

    EXPECT(llm_adapter_open_path(model, "/nonexistent", LLM_NTS, &adapter, &error), LLM_NOT_FOUND);
    TRUE(adapter == NULL && error != NULL);
    llm_error_free(error);
    EXPECT(llm_adapter_open_path(model, argv[1], LLM_NTS, &adapter, NULL), LLM_BAD_FORMAT); /* a model */
    EXPECT(llm_model_open_path(runtime, argv[2], LLM_NTS, NULL, NULL, (llm_model **)&copy, NULL), LLM_BAD_FORMAT);
    bytes[length / 2] ^= 1;
    TRUE(llm_adapter_open_memory(model, bytes, length, &dropped, count_drop, &adapter, NULL) < 0);
    bytes[length / 2] ^= 1;
    EXPECT(dropped, 1);
    EXPECT(llm_adapter_open_path(model, argv[2], LLM_NTS, &adapter, NULL), LLM_OK);
    EXPECT(llm_adapter_open_memory(model, bytes, length, &dropped, count_drop, &copy, NULL), LLM_OK);
    memset(&info, 0, sizeof info);
    EXPECT(llm_adapter_get_info(adapter, &info), LLM_INVALID_ARG); /* no struct_size */
    info.struct_size = sizeof info;
    EXPECT(llm_adapter_get_info(adapter, &info), LLM_OK);
    TRUE(info.rank == 4 && info.targets > 0 && info.file_bytes == length);

    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    size = run(session, plain);
    EXPECT(names_adapters(session), 0);
    both[0] = adapter, both[1] = copy;
    EXPECT(llm_session_set_adapters(session, both, scales, 2, 0, NULL, NULL), LLM_BAD_STATE);
    EXPECT(llm_session_reset(session), LLM_OK);
    EXPECT(llm_session_set_adapters(session, both, scales, 2, 2, NULL, NULL), LLM_INVALID_ARG);
    both[1] = NULL;
    EXPECT(llm_session_set_adapters(session, both, scales, 2, 0, NULL, NULL), LLM_NULL_ARG);
    EXPECT(llm_session_set_adapters(session, both, scales, 1, 0, NULL, NULL), LLM_OK);
    run(session, adapted);
    TRUE(memcmp(plain, adapted, size) != 0);
    EXPECT(names_adapters(session), 1);
    EXPECT(llm_session_set_adapters(session, NULL, NULL, 0, LLM_ADAPTERS_RECOMPUTE, NULL, NULL), LLM_OK);
    EXPECT(llm_session_copy_logits(session, again, 8192, NULL), LLM_OK);
    TRUE(memcmp(plain, again, size) == 0);
    both[0] = copy;
    EXPECT(llm_session_set_adapters(session, both, scales, 1, LLM_ADAPTERS_RECOMPUTE, NULL, NULL), LLM_OK);
    EXPECT(llm_session_copy_logits(session, again, 8192, NULL), LLM_OK);
    TRUE(memcmp(adapted, again, size) == 0); /* the same contents */

    /* Freed, but not gone: the session has it. */
    llm_adapter_free(copy);
    EXPECT(dropped, 1);
    run(session, again);
    TRUE(memcmp(adapted, again, size) == 0);
    EXPECT(llm_cancel_new(&cancel), LLM_OK);
    llm_cancel_trigger(cancel);
    EXPECT(llm_session_set_adapters(session, NULL, NULL, 0, LLM_ADAPTERS_RECOMPUTE, cancel, NULL), LLM_CANCELLED);
    EXPECT(llm_session_length(session, &held), LLM_OK);
    EXPECT(held, 0);
    run(session, again);
    TRUE(memcmp(adapted, again, size) == 0);
    llm_session_free(session);
    EXPECT(dropped, 2);
    llm_adapter_free(adapter), llm_cancel_free(cancel);
    llm_model_free(model), llm_runtime_free(runtime);
    return failures ? 1 : 0;
}

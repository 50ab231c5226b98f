/* What a host can do wrong, and what it gets for it: misuse MODEL.llm [no-fork]
 *
 * A child of fork has memory of threads that it does not have, which valgrind takes for leaks: hence no-fork. */
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <llm.h>
#include "expect.h"

static unsigned char *bytes;
static size_t length;

static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) exit(2);
    length = (size_t)ftell(file);
    rewind(file);
    bytes = malloc(length);
    if (bytes == NULL || fread(bytes, 1, length, file) != length) exit(2);
    fclose(file);
}

static void count_drop(void *user_data) { ++*(int *)user_data; }

/* --- opening ------------------------------------------------------------------------------------------------- */

static llm_status open_copy(llm_runtime *runtime, const unsigned char *data, size_t size) {
    llm_model_options *options = NULL;
    llm_model *model = (llm_model *)1;
    llm_error *error = NULL;
    int dropped = 0;
    llm_status status;
    EXPECT(llm_model_options_new(&options), LLM_OK);
    EXPECT(llm_model_options_set_verify(options, LLM_VERIFY_FULL), LLM_OK);
    status = llm_model_open_memory(runtime, data, size, &dropped, count_drop, options, NULL, &model, &error);
    if (status < 0) {
        TRUE(model == NULL);
        TRUE(error != NULL);
        EXPECT(llm_error_code(error), status);
        TRUE(strlen(llm_error_message(error, NULL)) > 0);
    }
    llm_error_free(error);
    llm_model_free(model);
    llm_model_options_free(options);
    EXPECT(dropped, 1);
    return status;
}

static void damaged_files(llm_runtime *runtime) {
    unsigned char *copy = malloc(length);
    size_t i, steps = 24;
    if (copy == NULL) exit(2);
    memcpy(copy, bytes, length);
    EXPECT(open_copy(runtime, copy, length), LLM_OK);
    for (i = 0; i < steps; i++) {
        size_t at = i < 8 ? i * 4 : (length - 1) / (steps - 8) * (i - 7);
        copy[at] ^= 0x10;
        TRUE(open_copy(runtime, copy, length) < 0);
        copy[at] = bytes[at];
        TRUE(open_copy(runtime, copy, length / steps * i) < 0);
    }
    free(copy);
    {
        llm_model *model = NULL;
        llm_error *error = NULL;
        int64_t value = 0;
        EXPECT(llm_model_open_path(runtime, "/nonexistent/m.llm", LLM_NTS, NULL, NULL, &model, &error), LLM_NOT_FOUND);
        EXPECT(llm_error_detail(error, LLM_DETAIL_OS_ERROR, &value), LLM_OK);
        EXPECT(llm_error_detail(error, LLM_DETAIL_SLOT, &value), LLM_NOT_FOUND);
        EXPECT(llm_error_detail(error, 999, &value), LLM_INVALID_ARG);
        llm_error_free(error);
        EXPECT(llm_model_open_path(runtime, "a\0b", 3, NULL, NULL, &model, NULL), LLM_INVALID_ARG);
        EXPECT(llm_model_open_path(runtime, "\xff", 1, NULL, NULL, &model, NULL), LLM_BAD_UTF8);
        EXPECT(llm_model_open_fd(runtime, -1, 0, 0, NULL, NULL, &model, NULL), LLM_IO);
    }
}

/* What is no file is refused without reading it, which need not end, and without waiting for a writer of it. */
static void no_files(llm_runtime *runtime, const char *path) {
    llm_model *model = (llm_model *)1;
    llm_snapshot_info info;
    llm_buffer *json = (llm_buffer *)1;
    char pipe_path[4096];
    const char *paths[3] = {"/dev/null", "/", pipe_path};
    size_t i;
    info.struct_size = sizeof info;
    if (strlen(path) + 8 > sizeof pipe_path) exit(2);
    strcpy(pipe_path, path);
    strcat(pipe_path, ".pipe");
    if (mkfifo(pipe_path, 0600) != 0) exit(2);
    alarm(60); /* ends a program that waits */
    for (i = 0; i < 3; i++) {
        EXPECT(llm_snapshot_inspect_path(paths[i], LLM_NTS, &info, NULL), LLM_INVALID_ARG);
        EXPECT(llm_model_inspect_path(paths[i], LLM_NTS, &json, NULL), LLM_INVALID_ARG);
        EXPECT(llm_model_open_path(runtime, paths[i], LLM_NTS, NULL, NULL, &model, NULL), LLM_INVALID_ARG);
        TRUE(json == NULL && model == NULL);
        EXPECT(llm_model_verify_path(paths[i], LLM_NTS, NULL, NULL, NULL, NULL, NULL), LLM_INVALID_ARG);
    }
    unlink(pipe_path);
    { /* a file longer than any memory is no snapshot by its first bytes */
        FILE *file = fopen(pipe_path, "wb");
        if (file == NULL || ftruncate(fileno(file), (off_t)1 << 38) != 0) exit(2);
        fclose(file);
        EXPECT(llm_snapshot_inspect_path(pipe_path, LLM_NTS, &info, NULL), LLM_BAD_FORMAT);
        unlink(pipe_path);
    }
    alarm(0);
    {
        llm_error *error = NULL;
        EXPECT(llm_snapshot_inspect_path("/dev/null/none", LLM_NTS, &info, &error), LLM_IO);
        TRUE(strstr(llm_error_message(error, NULL), "/dev/null/none") != NULL);
        llm_error_free(error);
    }
}

static llm_control cancel_at_once(void *user_data, uint64_t done, uint64_t total) {
    (void)done, (void)total;
    ++*(int *)user_data;
    return LLM_CONTROL_CANCEL;
}
static llm_control answer_nonsense(void *user_data, uint64_t done, uint64_t total) {
    (void)user_data, (void)done, (void)total;
    return 77;
}

static void verifying(const char *path) {
    llm_cancel *cancel = NULL;
    llm_buffer *json = NULL;
    int calls = 0;
    EXPECT(llm_cancel_new(&cancel), LLM_OK);
    EXPECT(llm_model_verify_path(path, LLM_NTS, NULL, NULL, NULL, cancel, NULL), LLM_OK);
    EXPECT(llm_model_verify_path(path, LLM_NTS, cancel_at_once, &calls, NULL, NULL, NULL), LLM_CANCELLED);
    EXPECT(calls, 1);
    EXPECT(llm_model_verify_path(path, LLM_NTS, answer_nonsense, NULL, NULL, NULL, NULL), LLM_CALLBACK);
    llm_cancel_trigger(cancel);
    EXPECT(llm_cancel_is_set(cancel), 1);
    EXPECT(llm_model_verify_path(path, LLM_NTS, NULL, NULL, NULL, cancel, NULL), LLM_CANCELLED);
    llm_cancel_free(cancel);
    EXPECT(llm_model_inspect_path(path, LLM_NTS, &json, NULL), LLM_OK);
    EXPECT((long)strlen(llm_buffer_data(json)), (long)llm_buffer_size(json));
    llm_buffer_free(json);
}

/* --- sizes and buffers --------------------------------------------------------------------------------------- */

static void small_buffers(llm_tokenizer *tokenizer, llm_session *session) {
    static const char text[] = "Once upon a time";
    llm_token ids[64];
    char back[256];
    size_t needed = 0, again = 0;
    struct { llm_sampling_params params; char beyond[8]; } newer;
    llm_perf perf;
    EXPECT(llm_tokenizer_encode(tokenizer, text, LLM_NTS, 0, NULL, 0, &needed), LLM_BUFFER_SMALL);
    TRUE(needed > 1 && needed < 64);
    memset(ids, 0x55, sizeof ids);
    EXPECT(llm_tokenizer_encode(tokenizer, text, LLM_NTS, 0, ids, needed - 1, &again), LLM_BUFFER_SMALL);
    TRUE(again == needed && ids[0] == 0x55555555);
    EXPECT(llm_tokenizer_encode(tokenizer, text, LLM_NTS, 0, NULL, needed, NULL), LLM_NULL_ARG);
    EXPECT(llm_tokenizer_encode(tokenizer, text, LLM_NTS, 0, ids, needed, NULL), LLM_OK);
    EXPECT(llm_tokenizer_encode(tokenizer, text, LLM_NTS, 1u << 30, ids, 64, NULL), LLM_INVALID_ARG);
    EXPECT(llm_tokenizer_encode(tokenizer, "\xc3", 1, 0, ids, 64, NULL), LLM_BAD_UTF8);
    EXPECT(llm_tokenizer_encode(tokenizer, NULL, 0, 0, ids, 64, &again), LLM_OK);
    EXPECT(llm_tokenizer_decode(tokenizer, ids, needed, 0, back, sizeof back, &again), LLM_OK);
    TRUE(again >= strlen(text) && memcmp(back + again - strlen(text), text, strlen(text)) == 0);
    ids[0] = -1;
    EXPECT(llm_tokenizer_decode(tokenizer, ids, 1, 0, back, sizeof back, NULL), LLM_INVALID_ARG);
    EXPECT(llm_session_copy_tokens(session, NULL, 0, &again), LLM_OK);
    EXPECT((long)again, 0);

    memset(&newer, 0x55, sizeof newer);
    newer.params.struct_size = sizeof newer;
    EXPECT(llm_sampling_params_init(&newer.params), LLM_OK);
    TRUE(newer.params.top_p == 1 && newer.beyond[7] == 0);
    newer.params.struct_size = 8;
    EXPECT(llm_sampling_params_init(&newer.params), LLM_INVALID_ARG);
    memset(&perf, 0xff, sizeof perf);
    EXPECT(llm_generation_perf(NULL, &perf), LLM_NULL_ARG);
}

/* --- wrong handles, drops ------------------------------------------------------------------------------------ */

static void wrong_handles(llm_runtime *runtime, llm_model *model) {
    llm_session *session = (llm_session *)1;
    llm_runtime_options *options = NULL;
    int dropped = 0;
    uint32_t now = 5;
    EXPECT(llm_session_new((llm_model *)runtime, NULL, NULL, &session, NULL), LLM_INVALID_ARG);
    TRUE(session == NULL);
    llm_session_free((llm_session *)model); /* another class: nothing happens */
    EXPECT(llm_runtime_options_new(&options), LLM_OK);
    EXPECT(llm_runtime_options_set_log(options, 99, NULL, &dropped, count_drop), LLM_INVALID_ARG);
    EXPECT(dropped, 1);
    EXPECT(llm_runtime_options_set_log(options, LLM_LOG_DEBUG, NULL, &dropped, count_drop), LLM_OK);
    EXPECT(dropped, 1);
    llm_runtime_options_free(options);
    EXPECT(dropped, 2);
    EXPECT(llm_session_prefill(NULL, NULL, 0, NULL, &dropped, count_drop, NULL, &now, NULL), LLM_NULL_ARG);
    EXPECT(dropped, 3);
    EXPECT(now, 5);
}

/* --- log ----------------------------------------------------------------------------------------------------- */

struct log {
    llm_runtime_options *options;
    int records;
};

static void on_log(void *user_data, int32_t level, const char *text, size_t text_length) {
    struct log *log = user_data;
    llm_runtime *inner = (llm_runtime *)1;
    TRUE(level >= LLM_LOG_ERROR && level <= LLM_LOG_DEBUG && strlen(text) == text_length);
    EXPECT(llm_runtime_new(NULL, &inner, NULL), LLM_REENTRANT);
    TRUE(inner == NULL);
    log->records++;
}

static void logging(void) {
    struct log log = {NULL, 0};
    llm_runtime *runtime = NULL;
    EXPECT(llm_runtime_options_new(&log.options), LLM_OK);
    EXPECT(llm_runtime_options_set_log(log.options, LLM_LOG_DEBUG, on_log, &log, NULL), LLM_OK);
    EXPECT(llm_runtime_options_set_threads(log.options, 2), LLM_OK);
    EXPECT(llm_runtime_new(log.options, &runtime, NULL), LLM_OK);
    llm_runtime_options_free(log.options);
    llm_runtime_free(runtime);
    TRUE(log.records > 0);
}

/* --- callbacks ----------------------------------------------------------------------------------------------- */

static llm_generation *generation;
static llm_session *shared_session;
static llm_cancel *signalled;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static int stage; /* 0 begin, 1 inside the callback, 2 the other thread is done */

static void *other_thread(void *nothing) {
    pthread_mutex_lock(&mutex);
    while (stage < 1) pthread_cond_wait(&turn, &mutex);
    EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_BUSY);
    EXPECT(llm_session_reset(shared_session), LLM_BUSY);
    stage = 2;
    pthread_cond_broadcast(&turn);
    pthread_mutex_unlock(&mutex);
    return nothing;
}

static llm_control from_inside(void *user_data, const llm_event *event, const char *text, size_t text_length,
                               const llm_token *ids, size_t ids_count) {
    int *calls = user_data;
    int32_t reason;
    TRUE(event->struct_size == sizeof *event && strlen(text) == text_length && text_length == event->text_length);
    TRUE(ids_count == event->ids_count && (ids_count == 0 || ids[0] >= 0));
    EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_REENTRANT);
    EXPECT(llm_generation_reason(generation, &reason), LLM_REENTRANT);
    EXPECT(llm_session_reset(shared_session), LLM_BUSY);
    EXPECT(fegetround(), FE_UPWARD); /* the host's floating-point word is in force */
    pthread_mutex_lock(&mutex);
    stage = stage < 1 ? 1 : stage;
    pthread_cond_broadcast(&turn);
    while (stage < 2) pthread_cond_wait(&turn, &mutex);
    pthread_mutex_unlock(&mutex);
    return ++*calls < 3 ? LLM_CONTROL_CONTINUE : LLM_CONTROL_STOP;
}

static llm_control interrupt(void *user_data, const llm_event *event, const char *text, size_t text_length,
                             const llm_token *ids, size_t ids_count) {
    (void)event, (void)text, (void)text_length, (void)ids, (void)ids_count;
    if (++*(int *)user_data == 3) raise(SIGINT);
    return LLM_CONTROL_CONTINUE;
}

static llm_control say_cancel(void *user_data, const llm_event *event, const char *text, size_t text_length,
                              const llm_token *ids, size_t ids_count) {
    (void)user_data, (void)event, (void)text, (void)text_length, (void)ids, (void)ids_count;
    return LLM_CONTROL_CANCEL;
}

static void on_signal(int number) {
    (void)number;
    llm_cancel_trigger(signalled);
}

static llm_session *prompted(llm_model *model) {
    llm_session *session = NULL;
    llm_token ids[3] = {1, 5, 9};
    uint32_t now = 0;
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 3, NULL, NULL, NULL, NULL, &now, NULL), LLM_OK);
    EXPECT(now, 3);
    return session;
}

static void busy_and_reentrant(llm_model *model) {
    llm_sampler *sampler = NULL;
    pthread_t thread;
    int calls = 0, dropped = 0;
    const llm_token *ids;
    size_t count = 0;
    shared_session = prompted(model);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_new(shared_session, sampler, NULL, &generation, NULL), LLM_OK);
    EXPECT(llm_generation_new(shared_session, sampler, NULL, (llm_generation *[]){NULL}, NULL), LLM_BUSY);
    if (pthread_create(&thread, NULL, other_thread, NULL) != 0) exit(2);
    fesetround(FE_UPWARD);
    EXPECT(llm_generation_run(generation, from_inside, &calls, count_drop, NULL, NULL), LLM_MORE);
    EXPECT(fegetround(), FE_UPWARD);
    fesetround(FE_TONEAREST);
    pthread_join(thread, NULL);
    EXPECT(calls, 4); /* three events, and the drop */
    EXPECT(llm_generation_ids(generation, &ids, &count), LLM_OK);
    EXPECT((long)count, 1);
    EXPECT(llm_generation_run(generation, say_cancel, &dropped, count_drop, NULL, NULL), LLM_CANCELLED);
    EXPECT(dropped, 1);
    EXPECT(llm_generation_next(generation, NULL, NULL, NULL), LLM_DONE);
    llm_generation_free(generation);
    EXPECT(llm_session_reset(shared_session), LLM_OK);
    llm_session_free(shared_session);
    llm_sampler_free(sampler);
}

static void cancel_from_a_signal_handler(llm_model *model) {
    llm_generation_options *options = NULL;
    llm_session *session = prompted(model);
    llm_sampler *sampler = NULL;
    struct sigaction action;
    llm_token id = 7;
    uint32_t held = 0;
    int32_t reason = 0;
    int calls = 0;
    EXPECT(llm_cancel_new(&signalled), LLM_OK);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_options_new(&options), LLM_OK);
    EXPECT(llm_generation_options_set_ignore_end(options, 1), LLM_OK);
    EXPECT(llm_generation_options_set_max_tokens(options, 100), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, options, &generation, NULL), LLM_OK);
    EXPECT(llm_generation_run(generation, interrupt, &calls, NULL, signalled, NULL), LLM_DONE);
    EXPECT(llm_generation_reason(generation, &reason), LLM_OK);
    EXPECT(reason, LLM_REASON_CANCELLED);
    EXPECT(calls, 4);
    llm_generation_free(generation);
    EXPECT(llm_session_length(session, &held), LLM_OK);
    EXPECT(llm_session_prefill(session, &id, 1, NULL, NULL, NULL, signalled, NULL, NULL), LLM_CANCELLED);
    EXPECT(llm_session_decode(session, id, signalled, NULL), LLM_CANCELLED);
    {
        uint32_t after = 0;
        EXPECT(llm_session_length(session, &after), LLM_OK);
        EXPECT(after, held);
    }
    EXPECT(llm_cancel_reset(signalled), LLM_OK);
    EXPECT(llm_session_decode(session, id, signalled, NULL), LLM_OK);
    signal(SIGINT, SIG_DFL);
    llm_generation_options_free(options);
    llm_sampler_free(sampler);
    llm_session_free(session);
    llm_cancel_free(signalled);
}

/* --- rounding ------------------------------------------------------------------------------------------------ */

/* All that comes of a model, computed by a host that rounds in its own way: the bytes of a snapshot with a sampler whose
 * filter learns, and log-probabilities. */
static size_t computed(const char *path, int rounding, unsigned char *snapshot, size_t cap, float *top) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_session *session = NULL;
    llm_sampler *sampler = NULL;
    llm_token ids[9] = {1, 403, 407, 261, 378, 300, 301, 302, 9}, best[8];
    size_t count = 0, size = 0;
    int i;
    fesetround(rounding);
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    EXPECT(llm_session_prefill(session, ids, 9, NULL, NULL, NULL, NULL, NULL, NULL), LLM_OK);
    EXPECT(llm_session_top(session, best, top, 8, &count), LLM_OK);
    EXPECT(count, 8);
    EXPECT(llm_sampler_new_chain(NULL, "temperature=0.9;mirostat=3.3,0.1", LLM_NTS, &sampler, NULL), LLM_OK);
    for (i = 0; i < 8; i++) {
        llm_token id = 0;
        EXPECT(llm_sampler_sample(sampler, session, &id, NULL, NULL), LLM_OK);
        EXPECT(llm_sampler_accept(sampler, &id, 1, NULL), LLM_OK);
        EXPECT(llm_session_decode(session, id, NULL, NULL), LLM_OK);
    }
    EXPECT(llm_session_snapshot_buffer(session, sampler, snapshot, cap, &size, NULL), LLM_OK);
    EXPECT(fegetround(), rounding);
    fesetround(FE_TONEAREST);
    llm_sampler_free(sampler);
    llm_session_free(session);
    llm_model_free(model);
    llm_runtime_free(runtime);
    return size;
}

static void rounding_changes_nothing(const char *path) {
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    size_t cap = 1u << 22, size, i;
    unsigned char *expected = malloc(cap), *snapshot = malloc(cap);
    float top[8], other[8];
    if (expected == NULL || snapshot == NULL) exit(2);
    size = computed(path, FE_TONEAREST, expected, cap, top);
    for (i = 0; i < 3; i++) {
        EXPECT((long)computed(path, modes[i], snapshot, cap, other), (long)size);
        TRUE(memcmp(snapshot, expected, size) == 0);
        TRUE(memcmp(other, top, sizeof top) == 0);
    }
    free(expected);
    free(snapshot);
}

/* --- evaluation ---------------------------------------------------------------------------------------------- */

static void evaluation(llm_model *model) {
    llm_session *session = prompted(model);
    llm_model_info info;
    llm_error *error = NULL;
    const float *logits = NULL;
    float *copy;
    size_t count = 0, tops = 0;
    llm_token top[3], chosen = -1;
    float log_probabilities[3];
    int64_t index = -1;
    llm_sampler *sampler = NULL;
    info.struct_size = sizeof info;
    EXPECT(llm_model_get_info(model, &info), LLM_OK);
    EXPECT(llm_session_logits(session, &logits, &count), LLM_OK);
    EXPECT((long)count, (long)info.vocabulary);
    copy = malloc(count * sizeof *copy);
    if (copy == NULL) exit(2);
    EXPECT(llm_session_copy_logits(session, copy, count - 1, NULL), LLM_BUFFER_SMALL);
    EXPECT(llm_session_copy_logits(session, copy, count, NULL), LLM_OK);
    TRUE(memcmp(copy, logits, count * sizeof *copy) == 0);
    free(copy);
    EXPECT(llm_session_top(session, top, log_probabilities, 3, &tops), LLM_OK);
    TRUE(tops == 3 && log_probabilities[0] >= log_probabilities[1] && log_probabilities[0] <= 0);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_sampler_sample(sampler, session, &chosen, log_probabilities, NULL), LLM_OK);
    EXPECT(chosen, top[0]);
    {
        float never = -1e30f;
        EXPECT(llm_sampler_set_bias(sampler, top, &never, 1), LLM_OK);
        EXPECT(llm_sampler_sample(sampler, session, &chosen, NULL, NULL), LLM_OK);
        EXPECT(chosen, top[1]);
        EXPECT(llm_sampler_accept(sampler, &chosen, 1, NULL), LLM_OK);
        EXPECT(llm_sampler_reset(sampler), LLM_OK);
    }
    /* Arrays that nobody can have. */
    EXPECT(llm_session_score(session, top, 1, log_probabilities, SIZE_MAX / 4, top, log_probabilities, NULL, NULL, NULL, NULL,
                             NULL, NULL), LLM_NO_MEMORY);
    EXPECT(llm_session_score(session, top, 3, log_probabilities, SIZE_MAX / 2, top, log_probabilities, NULL, NULL, NULL, NULL,
                             NULL, NULL), LLM_INVALID_ARG);
    EXPECT(llm_session_prefill(session, top, SIZE_MAX, NULL, NULL, NULL, NULL, NULL, NULL), LLM_INVALID_ARG);
    top[0] = 3, top[1] = -4;
    EXPECT(llm_session_prefill(session, top, 2, NULL, NULL, NULL, NULL, NULL, &error), LLM_INVALID_ARG);
    EXPECT(llm_error_detail(error, LLM_DETAIL_TOKEN_INDEX, &index), LLM_OK);
    EXPECT((long)index, 1);
    llm_error_free(error);
    EXPECT(llm_session_truncate(session, 99, NULL), LLM_INVALID_ARG);
    EXPECT(llm_session_truncate(session, 1, NULL), LLM_OK);
    EXPECT(llm_session_reset(session), LLM_OK);
    EXPECT(llm_session_logits(session, &logits, NULL), LLM_BAD_STATE);
    TRUE(logits == NULL);
    llm_sampler_free(sampler);
    llm_session_free(session);
}

/* --- lifetimes ----------------------------------------------------------------------------------------------- */

static void odd_orders(const char *path) {
    llm_runtime *runtime = NULL, *second = NULL;
    llm_model *model = NULL, *again = NULL;
    llm_session *session;
    llm_sampler *sampler = NULL;
    llm_generation *running = NULL;
    llm_status status;
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_runtime_retain(runtime, &second), LLM_OK);
    llm_runtime_free(runtime);
    EXPECT(llm_model_open_path(second, path, LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    llm_runtime_free(second);
    EXPECT(llm_model_retain(model, &again), LLM_OK);
    llm_model_free(model);
    session = prompted(again);
    EXPECT(llm_sampler_new(NULL, &sampler, NULL), LLM_OK);
    EXPECT(llm_generation_new(session, sampler, NULL, &running, NULL), LLM_OK);
    llm_model_free(again);
    llm_sampler_free(sampler);
    llm_session_free(session);
    status = llm_generation_next(running, NULL, NULL, NULL);
    TRUE(status == LLM_MORE || status == LLM_DONE);
    llm_generation_free(running);
}

static void after_fork(llm_model *model) {
    llm_session *session = prompted(model);
    pid_t child = fork();
    int result = -1;
    if (child == 0) {
        llm_runtime *runtime = (llm_runtime *)1;
        int before = failures;
        EXPECT(llm_session_decode(session, 1, NULL, NULL), LLM_BAD_STATE);
        EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_BAD_STATE);
        TRUE(runtime == NULL);
        llm_session_free(session); /* neither waits nor crashes */
        _exit(failures == before ? 0 : 1);
    }
    TRUE(child > 0 && waitpid(child, &result, 0) == child);
    EXPECT(result, 0);
    llm_session_free(session);
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_session *session = NULL;
    if (argc < 2) return 2;
    read_file(argv[1]);
    EXPECT(llm_runtime_new(NULL, &runtime, NULL), LLM_OK);
    EXPECT(llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, NULL), LLM_OK);
    EXPECT(llm_model_tokenizer(model, &tokenizer), LLM_OK);
    EXPECT(llm_session_new(model, NULL, NULL, &session, NULL), LLM_OK);
    if (failures > 0) return 1;
    damaged_files(runtime);
    no_files(runtime, argv[1]);
    verifying(argv[1]);
    small_buffers(tokenizer, session);
    wrong_handles(runtime, model);
    logging();
    busy_and_reentrant(model);
    cancel_from_a_signal_handler(model);
    evaluation(model);
    odd_orders(argv[1]);
    rounding_changes_nothing(argv[1]);
    if (argc == 2) after_fork(model);
    llm_tokenizer_free(tokenizer);
    llm_session_free(session);
    llm_model_free(model);
    llm_runtime_free(runtime);
    free(bytes);
    return failures > 0;
}

/* libllm: runs a language model inside the host's own process.
 *
 * RULES THAT HOLD FOR EVERY FUNCTION
 *
 * Results. Every function that can fail returns llm_status: 0 is success, negative a failure, positive success
 * with news. `out_` parameters are written. On failure pointer outputs are NULL and scalar outputs untouched,
 * except `out_needed`. Where the last parameter is `llm_error **out_err` it may be NULL; otherwise it receives NULL
 * or an error object that the host frees with llm_error_free.
 *
 * Text is UTF-8, a pointer and a length in bytes; the length LLM_NTS says that it ends with NUL. NULL with length
 * 0 is the empty text. Text may hold NUL, paths may not. Borrowed texts also end with NUL.
 *
 * Buffers. (buf, cap, out_needed) asks or fills: too small gives LLM_BUFFER_SMALL, writes out_needed and leaves
 * the buffer alone. buf may be NULL with cap 0; out_needed may be NULL. Counts are of elements.
 *
 * Structs begin with `struct_size`, which the host sets to sizeof. The library touches no more than that.
 *
 * Ownership. `_new`, `_open_`, `_compile`, `_fork`, `_retain` give a handle, `_free` ends it and takes NULL. Each handle
 * is freed once. A handle keeps alive what it needs, so handles may be freed in any order. Everything passed in is
 * borrowed for the call and copied if kept, except callbacks and the memory of llm_model_open_memory and
 * llm_adapter_open_memory.
 *
 * Threads. Each function's comment ends with its class. S: shared, any threads at once. I: locked inside, any
 * threads at once, may wait. X: any thread, one at a time; a concurrent call on the handle returns LLM_BUSY.
 *
 * Callbacks are a function, its user_data, and a drop function that runs exactly once when the library no
 * longer needs user_data, also when the call fails; function and drop may be NULL. They run on the thread of the
 * call, before it returns (a log sink: on any thread, one at a time). Inside a callback call only functions
 * marked "callback-safe"; others on the same handle return LLM_REENTRANT. A callback must not unwind or jump out.
 *
 * Wrong pointers. NULL and a handle of another class are answered with a status. A handle that was freed usually
 * is, but cannot be promised to be.
 *
 * After LLM_INTERNAL the handles of the call answer LLM_POISONED; free them. After fork without exec every
 * function answers LLM_BAD_STATE in the child if a runtime existed. docs/embedding.md says more. */

#ifndef LLM_H
#define LLM_H

/* Generated from src/ffi by cbindgen; `LLM_BLESS=1 cargo test -p libllm --test header` writes it. */

#include <stddef.h>
#include <stdint.h>
/* The length that says "this text ends with NUL". */
#define LLM_NTS ((size_t)-1)

/* Major version of the library. */
#define LLM_VERSION_MAJOR 0
/* Minor version. */
#define LLM_VERSION_MINOR 1
/* Patch version. */
#define LLM_VERSION_PATCH 0

/* Number of the binary interface this header describes; see llm_abi_check. */
#define LLM_ABI 1
/* Success. */
#define LLM_OK 0
/* Success, and there is nothing more to come. */
#define LLM_DONE 1
/* Success, and there is more to come. */
#define LLM_MORE 2
/* An argument is out of its range. */
#define LLM_INVALID_ARG -1
/* A required pointer is NULL. */
#define LLM_NULL_ARG -2
/* The call does not fit the handle's state, or the process was forked while a runtime existed. */
#define LLM_BAD_STATE -3
/* The handle is in a call on another thread, or belongs to a generation or a batch. */
#define LLM_BUSY -4
/* A callback called back into the handle that runs it. */
#define LLM_REENTRANT -5
/* A cancel handle was triggered, or a callback answered CANCEL. */
#define LLM_CANCELLED -6
/* A cancel handle's deadline passed. */
#define LLM_DEADLINE -7
/* The system has no memory. */
#define LLM_NO_MEMORY -8
/* A limit the host set does not allow it. */
#define LLM_BUDGET -9
/* No free page for keys and values. */
#define LLM_KV_FULL -10
/* The session holds as many tokens as it may. */
#define LLM_CONTEXT_FULL -11
/* There is no such thing: file, key, token, template, detail. */
#define LLM_NOT_FOUND -12
/* The operating system refused to read or write. */
#define LLM_IO -13
/* The data is damaged or not in the expected format. */
#define LLM_BAD_FORMAT -14
/* The file's version is not one this library reads. */
#define LLM_BAD_VERSION -15
/* A checksum differs. */
#define LLM_CHECKSUM -16
/* A snapshot, pool, adapter or draft does not belong to this model. */
#define LLM_MISMATCH -17
/* Not supported by this build or for this model. */
#define LLM_UNSUPPORTED -18
/* A device failed. */
#define LLM_DEVICE -19
/* A device is gone. */
#define LLM_DEVICE_LOST -20
/* The buffer is too small; nothing was written but the size needed. */
#define LLM_BUFFER_SMALL -21
/* Text is not UTF-8. */
#define LLM_BAD_UTF8 -22
/* A grammar does not compile. */
#define LLM_GRAMMAR -23
/* A schema does not compile or uses what is not supported. */
#define LLM_SCHEMA -24
/* A constraint allows no token. */
#define LLM_DEAD_END -25
/* A callback answered something it may not. */
#define LLM_CALLBACK -26
/* An earlier call on the handle failed with INTERNAL; only freeing it is allowed. */
#define LLM_POISONED -27
/* A defect in the library. */
#define LLM_INTERNAL -28
/* Header and library do not fit together. */
#define LLM_ABI_MISMATCH -29

/* Go on. */
#define LLM_CONTROL_CONTINUE 0
/* End here and keep what was computed. */
#define LLM_CONTROL_STOP 1
/* End with CANCELLED. */
#define LLM_CONTROL_CANCEL 2

/* Capability: models can be mapped from a path (1 or 0). */
#define LLM_CAPABILITY_MAP 1
/* Capability: models can be opened from a descriptor (1 or 0). */
#define LLM_CAPABILITY_OPEN_FD 2
/* Capability: how many compute devices other than the processor this build can drive. */
#define LLM_CAPABILITY_DEVICES 3

/* Offset in the file or text at which reading failed, in bytes. */
#define LLM_DETAIL_OFFSET 1
/* Elements or bytes that were needed. */
#define LLM_DETAIL_NEEDED 2
/* Error number of the operating system. */
#define LLM_DETAIL_OS_ERROR 3
/* Index of the offending token in the array that was passed. */
#define LLM_DETAIL_TOKEN_INDEX 4
/* Offset in a grammar or template. */
#define LLM_DETAIL_GRAMMAR_OFFSET 5
/* Slot of a batch. */
#define LLM_DETAIL_SLOT 6
/* Position in a session. */
#define LLM_DETAIL_POSITION 7
/* Line of a template. */
#define LLM_DETAIL_LINE 8

/* Nothing is logged. */
#define LLM_LOG_OFF 0
/* What went wrong and no status reports. */
#define LLM_LOG_ERROR 1
/* What the host should know. */
#define LLM_LOG_WARN 2
/* What is going on. */
#define LLM_LOG_INFO 3
/* Details for finding faults. */
#define LLM_LOG_DEBUG 4

/* The processor. */
#define LLM_DEVICE_CPU 0

/* Give back the memory of KV pages that hold nothing. */
#define LLM_TRIM_MILD 0
/* Also of those that only the prefix cache keeps and nobody has pinned: they will be computed again. */
#define LLM_TRIM_HARD 1

/* Map the file: the fastest, and memory is shared; the file must not change while it is open (default). */
#define LLM_LOAD_MAP 0
/* Copy the file into memory: safe against later changes of the file. */
#define LLM_LOAD_COPY 1

/* Map the file and lock it in memory, so that the system never takes its pages away. The system's limit on locked
 * memory must allow it. */
#define LLM_LOAD_MAP_AND_LOCK 2

/* Check the header only, and what is used when it is used. */
#define LLM_VERIFY_HEADER 0
/* Check the structure and the checksums of everything but weights (default). */
#define LLM_VERIFY_STRUCTURE 1
/* Check every checksum: reads the whole file. */
#define LLM_VERIFY_FULL 2

/* Experts are chosen per token. */
#define LLM_MODEL_EXPERTS 1
/* The file has a tokenizer. */
#define LLM_MODEL_TOKENIZER 2
/* The file has a chat template. */
#define LLM_MODEL_TEMPLATE 4

/* Put the tokens of the model's own frame, such as a beginning of text, around the text. */
#define LLM_ENCODE_ADD_SPECIAL 1
/* Recognise the text of special tokens as those tokens; not for text that comes from users. */
#define LLM_ENCODE_PARSE_SPECIAL 2

/* Leave special tokens out of the text. */
#define LLM_DECODE_SKIP_SPECIAL 1

/* Begins a text. */
#define LLM_SPECIAL_BOS 0
/* Ends a text. */
#define LLM_SPECIAL_EOS 1
/* Stands for what the vocabulary cannot say. */
#define LLM_SPECIAL_UNKNOWN 2
/* Fills up. */
#define LLM_SPECIAL_PAD 3

/* The id is in use. */
#define LLM_TOKEN_PRESENT 1
/* Special: can be left out of decoded text. */
#define LLM_TOKEN_SPECIAL 2
/* Added to the vocabulary of the model. */
#define LLM_TOKEN_ADDED 4
/* Stands for one byte. */
#define LLM_TOKEN_BYTE 8
/* The unknown token. */
#define LLM_TOKEN_UNKNOWN 16
/* A control token without text of its own. */
#define LLM_TOKEN_CONTROL 32
/* Ends a turn. */
#define LLM_TOKEN_END 64

/* Leave special tokens out of the text. */
#define LLM_STREAM_SKIP_SPECIAL 1

/* Rendering ends with the beginning of an answer, for the model to continue. */
#define LLM_RENDER_GENERATION_PROMPT 1

/* Nothing follows the text. */
#define LLM_PARSE_FINAL 1
/* The prompt ended inside reasoning, which the answer goes on with. */
#define LLM_PARSE_IN_REASONING 2

/* F32 for a file of f32, F16 where heads are narrower than 32, else I8_F16 (default). */
#define LLM_KV_TYPE_AUTO 0
/* Keys and values as computed. */
#define LLM_KV_TYPE_F32 1
/* Both in half precision. */
#define LLM_KV_TYPE_F16 2
/* Keys in int8 with a scale per token and head, values in half precision. */
#define LLM_KV_TYPE_I8_F16 3
/* Both in int8. */
#define LLM_KV_TYPE_I8 4

/* No cached page goes by itself. */
#define LLM_EVICTION_NONE 0
/* The cached pages go first that were not used for longest (default). */
#define LLM_EVICTION_LEAST_RECENT 1
/* Those of sessions of the lowest priority; among equals those that were not used for longest. */
#define LLM_EVICTION_PRIORITY 2

/* The same bits on this machine whatever the number of threads, chunks and sessions (default). */
#define LLM_DETERMINISM_BATCH 0
/* Also the same bits on other instruction sets. */
#define LLM_DETERMINISM_PORTABLE 1

/* As LLM_DETERMINISM_BATCH on this machine, but f16 and bf16 weights may be multiplied in bf16 where the processor
 * has AMX: results then differ from those of the other levels. */
#define LLM_DETERMINISM_FAST 2

/* Tokens that do not fit are refused with CONTEXT_FULL (default). */
#define LLM_OVERFLOW_ERROR 0

/* The head and the newest tokens are kept, and the newest run again: the bits of a fresh session of these tokens, at
 * the cost of a prefill of up to half the context for every half context. */
#define LLM_OVERFLOW_RECOMPUTE 1

/* The head and the newest tokens are kept, and the keys of the newest are moved to their new positions: cheap,
 * approximate, and without the promise of same bits. */
#define LLM_OVERFLOW_SHIFT 2

/* The mean of all tokens' hidden states. */
#define LLM_POOLING_MEAN 0
/* The hidden state of the last token, which has seen all others. */
#define LLM_POOLING_LAST 1
/* The hidden state of the first token. */
#define LLM_POOLING_FIRST 2

/* A session that holds tokens computes them again with its new adapters. */
#define LLM_ADAPTERS_RECOMPUTE 1

/* On the model's logits, before the chain. */
#define LLM_STAGE_BEFORE_PENALTIES 0
/* Behind the last of the chain's penalties. */
#define LLM_STAGE_AFTER_PENALTIES 1

/* Tokens or text; more may follow. */
#define LLM_EVENT_TEXT 0
/* The last event. */
#define LLM_EVENT_DONE 1

/* The generation has not ended. */
#define LLM_REASON_NONE 0
/* The model ended its turn. */
#define LLM_REASON_END_TOKEN 1
/* A stop text appeared; it is withheld. */
#define LLM_REASON_STOP_TEXT 2
/* A stop token was chosen. */
#define LLM_REASON_STOP_TOKEN 3
/* The largest number of tokens was reached. */
#define LLM_REASON_LENGTH 4
/* The host cancelled, or a deadline passed. */
#define LLM_REASON_CANCELLED 5
/* The session cannot hold more. */
#define LLM_REASON_CONTEXT_FULL 6
/* Constraint, bias and filters left no token. */
#define LLM_REASON_DEAD_END 7
/* The text is complete: the constraint lets nothing follow. */
#define LLM_REASON_COMPLETE 8

/* No logits: for a chunk that is not the last. */
#define LLM_WANT_NONE 0
/* Those behind the last token. */
#define LLM_WANT_LAST 1
/* Those behind every token; nothing is reused from the pool then. */
#define LLM_WANT_ALL 2

/* An open adapter. Class S. */
typedef struct llm_adapter llm_adapter;

/* One step of several sessions of a pool. Class X. */
typedef struct llm_batch llm_batch;

/* Bytes that the library owns: a text or a document. Class S. */
typedef struct llm_buffer llm_buffer;

/* A flag that ends a running call, with an optional deadline. Class I. */
typedef struct llm_cancel llm_cancel;

/* A conversation to render with a template: messages, tools, variables. Class X. */
typedef struct llm_chat llm_chat;

/* What a text must follow: a JSON schema, a regular expression, a grammar, a choice. Class S. */
typedef struct llm_constraint llm_constraint;

/* A text being written under a constraint. Class X. */
typedef struct llm_constraint_state llm_constraint_state;

/* What went wrong in a call. Class S. */
typedef struct llm_error llm_error;

/* A running generation. Class X. */
typedef struct llm_generation llm_generation;

/* What a generation shall do. Class X. */
typedef struct llm_generation_options llm_generation_options;

/* What a KV pool shall be. Class X. */
typedef struct llm_kv_options llm_kv_options;

/* Pages of keys and values that sessions of one model share: forks, a prefix cache, eviction. Class I. */
typedef struct llm_kv_pool llm_kv_pool;

/* An opened model: weights, tokenizer, metadata. Class S. */
typedef struct llm_model llm_model;

/* How to open a model. Class X. */
typedef struct llm_model_options llm_model_options;

/* Compute threads, limits and a log sink; several may coexist. Class I. */
typedef struct llm_runtime llm_runtime;

/* What a runtime shall be. Class X. */
typedef struct llm_runtime_options llm_runtime_options;

/* Chooses tokens from logits. Class X. */
typedef struct llm_sampler llm_sampler;

/* One sequence of tokens with its keys and values. Class X. */
typedef struct llm_session llm_session;

/* What a session shall be. Class X. */
typedef struct llm_session_options llm_session_options;

/* How tokens are guessed. Class X. */
typedef struct llm_spec_options llm_spec_options;

/* A compiled chat template. Class S. */
typedef struct llm_template llm_template;

/* Takes ids one by one and gives whole characters only. Class X. */
typedef struct llm_text_stream llm_text_stream;

/* Text to ids and back. Class S. */
typedef struct llm_tokenizer llm_tokenizer;

/* Result of a call: 0 is success, negative a failure, positive success with news. */
typedef int32_t llm_status;

/* Told whole log records, on any thread, one at a time per runtime. The text ends with NUL and is borrowed for the
 * call. Only callback-safe functions may be called inside. */
typedef void (*llm_log_fn)(void *user_data, int32_t level, const char *text, size_t text_length);

/* Runs once, when the library no longer needs `user_data`; also when the call that was given it fails. */
typedef void (*llm_drop_fn)(void *user_data);

/* What a device is. */
typedef struct llm_device_info {
    /* sizeof(llm_device_info), set by the host. */
    uint32_t struct_size;
    /* LLM_DEVICE_CPU. */
    int32_t kind;
    /* Bytes of memory it has; 0 where the system does not tell. */
    uint64_t total_bytes;
    /* Bytes of it that nobody uses; 0 where the system does not tell. */
    uint64_t free_bytes;
    /* Compute threads. */
    uint32_t threads;
    /* Which levels it honours: bit LLM_DETERMINISM_BATCH, and so on. */
    uint32_t determinism;
    /* Its name with the instruction set in use, ended by NUL. */
    char name[64];
    /* Zero. */
    uint64_t reserved[4];
} llm_device_info;

/* Live bytes of a runtime by what they are for. */
typedef struct llm_memory_use {
    /* sizeof(llm_memory_use), set by the host. */
    uint32_t struct_size;
    /* Zero. */
    uint32_t reserved0;
    /* Weights that were copied; mapped ones are not counted. */
    uint64_t weights;
    /* Pages of KV pools that were ever written and not given back. */
    uint64_t kv;
    /* Activations and logits of sessions and batches. */
    uint64_t scratch;
    /* All of these. */
    uint64_t total;
    /* The limit on them, 0 for none. */
    uint64_t limit;
    /* Zero. */
    uint64_t reserved[4];
} llm_memory_use;

/* What a control callback answers: one of LLM_CONTROL. */
typedef int32_t llm_control;

/* Told how far loading or checking is, in bytes. Answers one of LLM_CONTROL; STOP means CANCEL here. */
typedef llm_control (*llm_progress_fn)(void *user_data, uint64_t done, uint64_t total);

/* What a model is. */
typedef struct llm_model_info {
    /* sizeof(llm_model_info), set by the host. */
    uint32_t struct_size;
    /* Flags of LLM_MODEL. */
    uint32_t flags;
    /* Layers. */
    uint32_t layers;
    /* Query heads of the first layer. */
    uint32_t heads;
    /* Key-value heads of the first layer. */
    uint32_t kv_heads;
    /* Width of the residual stream. */
    uint32_t width;
    /* Rows of the embedding: ids are below it. */
    uint32_t vocabulary;
    /* Positions the model was trained for. */
    uint32_t context;
    /* Parameters. */
    uint64_t parameters;
    /* Bytes of the file. */
    uint64_t file_bytes;
    /* Bytes of weights. */
    uint64_t weight_bytes;
    /* Zero. */
    uint64_t reserved[5];
} llm_model_info;

/* Id of a token. */
typedef int32_t llm_token;

/* A pool's numbers at one moment: pages, unless said otherwise. used + cached + free = total. */
typedef struct llm_kv_stats {
    /* sizeof(llm_kv_stats), set by the host. */
    uint32_t struct_size;
    /* One of LLM_KV_TYPE, never AUTO. */
    int32_t kv_type;
    /* Tokens of a page. */
    uint64_t page_tokens;
    /* Bytes of a page. */
    uint64_t page_bytes;
    /* All pages. */
    uint64_t total;
    /* Pages that sessions hold. */
    uint64_t used;
    /* Pages that no session holds and that can be found again. */
    uint64_t cached;
    /* The others. */
    uint64_t free;
    /* Of the used, those that more than one session holds. */
    uint64_t shared;
    /* Of the used and cached, those that are pinned. */
    uint64_t pinned;
    /* The most free pages in a row. */
    uint64_t longest_free_run;
    /* Bytes of pages that were ever written and not given back to the system. */
    uint64_t committed_bytes;
    /* Bytes that swapped sessions take. */
    uint64_t swapped_bytes;
    /* Tokens that were found in the cache instead of computed, since the start. */
    uint64_t hit_tokens;
    /* Cached pages that went to make room, since the start. */
    uint64_t evictions;
    /* Pages copied because a session wrote into one it shared, since the start. */
    uint64_t copies;
    /* Pages that `page_tokens` tokens of a session take: one for each group of layers that hold the same tokens (those
     * without a window, those with each length of one). */
    uint64_t groups;
    /* Zero. */
    uint64_t reserved[3];
} llm_kv_stats;

/* Told how far a prefill is: tokens in all, tokens reused, tokens done, milliseconds so far. Answers one of
 * LLM_CONTROL. */
typedef llm_control (*llm_prefill_fn)(void *user_data,
                                      uint32_t total,
                                      uint32_t reused,
                                      uint32_t done,
                                      uint64_t milliseconds);

/* A session's numbers at one moment. A fork begins to count at 0. */
typedef struct llm_session_stats {
    /* sizeof(llm_session_stats), set by the host. */
    uint32_t struct_size;
    /* 1 while its pages are swapped out, else 0. */
    uint32_t swapped_out;
    /* Tokens it holds. */
    uint64_t tokens;
    /* Tokens it can hold. */
    uint64_t max_tokens;
    /* Pages it holds; 0 while it is swapped out. */
    uint64_t pages;
    /* Of those, pages that other sessions hold as well. */
    uint64_t shared_pages;
    /* Tokens that were found in the pool instead of computed. */
    uint64_t reused_tokens;
    /* Tokens computed and kept by calls of several tokens. */
    uint64_t prefilled_tokens;
    /* Tokens computed and kept by calls of one token. */
    uint64_t decoded_tokens;
    /* Nanoseconds of calls of several tokens; of a batch, the whole step's. */
    uint64_t prefill_ns;
    /* Nanoseconds of calls of one token; of a batch, the whole step's. */
    uint64_t decode_ns;
    /* Zero. */
    uint64_t reserved[4];
} llm_session_stats;

/* What an adapter is. */
typedef struct llm_adapter_info {
    /* sizeof(llm_adapter_info), set by the host. */
    uint32_t struct_size;
    /* Matrices it changes. */
    uint32_t targets;
    /* The largest rank among them. */
    uint32_t rank;
    /* Zero. */
    uint32_t reserved;
    /* Values of all its matrices. */
    uint64_t parameters;
    /* Bytes of the file. */
    uint64_t file_bytes;
    /* 32 bytes that name its contents, the same on every machine. */
    uint8_t fingerprint[32];
} llm_adapter_info;

/* What sessions of a model take of memory: bytes, unless said otherwise. */
typedef struct llm_memory_plan {
    /* sizeof(llm_memory_plan), set by the host. */
    uint32_t struct_size;
    /* How many sessions. */
    uint32_t sessions;
    /* Tokens of each. */
    uint64_t tokens;
    /* The model's file, where it is mapped: shared with other processes, and the system may take it back. */
    uint64_t weights_mapped;
    /* The model's file, where it was copied. */
    uint64_t weights_copied;
    /* Keys and values of a token, all layers. */
    uint64_t kv_per_token;
    /* Pages of all sessions when they are full and share nothing. */
    uint64_t kv_total;
    /* Activations and logits of all sessions. */
    uint64_t scratch;
    /* Of `peak`, what lies in the machine's memory. */
    uint64_t host_bytes;
    /* Of `peak`, what lies on other devices. */
    uint64_t device_bytes;
    /* The most that is allocated: copied weights, pages, scratch. */
    uint64_t peak;
    /* What largest_context was reckoned against. */
    uint64_t limit;
    /* Tokens that each of the sessions can have within the limit; 0 if none. It may be more than the model was trained
     * for. */
    uint64_t largest_context;
    /* Zero. */
    uint64_t reserved[4];
} llm_memory_plan;

/* What a sampler does. Filled by llm_sampling_params_init; the defaults are in parentheses. */
typedef struct llm_sampling_params {
    /* sizeof(llm_sampling_params), set by the host. */
    uint32_t struct_size;
    /* Logits are divided by it; 0 takes the likeliest token. (0) */
    float temperature;
    /* Keep this many of the likeliest tokens; 0 keeps all. (0) */
    uint32_t top_k;
    /* Keep the likeliest tokens until their probabilities reach this sum. (1) */
    float top_p;
    /* Keep tokens at least this many times as likely as the likeliest. (0) */
    float min_p;
    /* Divides positive and multiplies negative logits of tokens in the window. (1) */
    float repetition_penalty;
    /* Taken from the logit of every token in the window. (0) */
    float presence_penalty;
    /* Taken from a token's logit once per occurrence in the window. (0) */
    float frequency_penalty;
    /* How many of the latest tokens the penalties look at; 0: all. (64) */
    uint32_t penalty_window;
    /* Zero. */
    uint32_t reserved0;
    /* Seed of the random choice. (0) */
    uint64_t seed;
    /* Zero. */
    uint32_t reserved[4];
} llm_sampling_params;

/* Changes logits: one for each of `logits_count` tokens, -INFINITY for those taken away. `position` is that of the
 * token to be chosen, `ids` the tokens accepted so far, borrowed for the call. Answers LLM_CONTROL_CONTINUE; anything
 * else fails the call with CANCELLED. */
typedef llm_control (*llm_processor_fn)(void *user_data,
                                        uint64_t position,
                                        const llm_token *ids,
                                        size_t ids_count,
                                        float *logits,
                                        size_t logits_count);

/* What a snapshot says about itself. */
typedef struct llm_snapshot_info {
    /* sizeof(llm_snapshot_info), set by the host. */
    uint32_t struct_size;
    /* Version of the layout. */
    uint32_t version;
    /* One of LLM_KV_TYPE. */
    int32_t kv_type;
    /* One of LLM_DETERMINISM. */
    int32_t determinism;
    /* Tokens of a page. */
    uint32_t page_tokens;
    /* Length that rotary scaling was told; 0 where it does not matter. */
    uint32_t rope_length;
    /* Tokens it holds. */
    uint64_t tokens;
    /* Bytes of the whole. */
    uint64_t bytes;
    /* 1 if the state of a sampler is in it, else 0. */
    uint32_t has_sampler;
    /* Zero. */
    uint32_t reserved0;
    /* The model's llm_model_fingerprint. */
    uint8_t fingerprint[32];
    /* Name of the adapters it was computed with and of their scales, the same on every machine; zeros for none. */
    uint8_t adapters[32];
    /* Zero. */
    uint64_t reserved[4];
} llm_snapshot_info;

/* One event of a generation. Text and ids are read with llm_generation_text and llm_generation_ids. */
typedef struct llm_event {
    /* sizeof(llm_event), set by the host. */
    uint32_t struct_size;
    /* One of LLM_EVENT. */
    int32_t kind;
    /* One of LLM_REASON. */
    int32_t reason;
    /* How many ids. */
    uint32_t ids_count;
    /* Length of the text in bytes; it may be 0 where characters are not yet whole. */
    uint64_t text_length;
    /* Natural logarithm of the chosen token's probability under the model alone. */
    float log_probability;
    /* Zero. */
    uint32_t reserved[5];
} llm_event;

/* Told each event with its text and ids, which are borrowed for the call. Answers one of LLM_CONTROL. */
typedef llm_control (*llm_event_fn)(void *user_data,
                                    const struct llm_event *event,
                                    const char *text,
                                    size_t text_length,
                                    const llm_token *ids,
                                    size_t ids_count);

/* Counters of a generation. */
typedef struct llm_perf {
    /* sizeof(llm_perf), set by the host. */
    uint32_t struct_size;
    /* Zero. */
    uint32_t reserved0;
    /* Tokens chosen. */
    uint64_t tokens;
    /* Tokens decoded. */
    uint64_t decoded;
    /* Time spent choosing, in nanoseconds. */
    uint64_t sample_ns;
    /* Time spent decoding, in nanoseconds. */
    uint64_t decode_ns;
    /* Zero. */
    uint64_t reserved[4];
} llm_perf;

/* What speculation did. drafted = accepted + rejected; the steps with guesses told accepted + bonus tokens. */
typedef struct llm_spec_stats {
    /* sizeof(llm_spec_stats), set by the host. */
    uint32_t struct_size;
    /* Zero. */
    uint32_t reserved0;
    /* Tokens guessed and given to the model. */
    uint64_t drafted;
    /* Guesses that came true. */
    uint64_t accepted;
    /* Guesses that did not, those behind an end or a stop among them. */
    uint64_t rejected;
    /* Tokens chosen behind the last guess that came true: one for each step with guesses, none where that ended with
     * a guess. */
    uint64_t bonus;
    /* Steps with guesses. */
    uint64_t verify_steps;
    /* Steps of one token without guesses. */
    uint64_t plain_steps;
    /* Times that guessing was given up for a while because it did not pay. */
    uint64_t switched_off;
    /* Proposals and steps with guesses that failed; generation went on without. */
    uint64_t failed;
    /* Time spent guessing, in nanoseconds. */
    uint64_t draft_ns;
    /* Time spent in steps with guesses, in nanoseconds. */
    uint64_t verify_ns;
    /* What the tokens of those steps would have taken one by one, by the steps without guesses, in nanoseconds. */
    uint64_t plain_equivalent_ns;
    /* Guesses by their place in the draft. */
    uint64_t drafted_at[32];
    /* Those of them that came true. */
    uint64_t accepted_at[32];
    /* Zero. */
    uint64_t reserved[4];
} llm_spec_stats;

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the library as text, such as "0.1.0". Static. S, callback-safe. */
const char *llm_version_string(void);

/* Version as one number: major * 1000000 + minor * 1000 + patch. S, callback-safe. */
uint32_t llm_version_number(void);

/* Number of the binary interface the library has. S, callback-safe. */
int32_t llm_abi_number(void);

/* For hosts that load the library at run time: OK if it fits a program compiled with this LLM_ABI, else
 * ABI_MISMATCH. S, callback-safe. */
llm_status llm_abi_check(int32_t abi);

/* JSON text: version, compiler profile, target, features, instruction sets, devices, licence. Static. S, callback-safe. */
const char *llm_build_info(void);

/* What this build can do, by LLM_CAPABILITY id: 0 absent, 1 present, or a number. UNSUPPORTED for ids it does not
 * know, NULL_ARG. S, callback-safe. */
llm_status llm_capability(int32_t id,
                          int64_t *out_value);

/* Name of a status code's constant, such as "LLM_IO"; "LLM_UNKNOWN" for other numbers. Static, never NULL.
 * S, callback-safe, async-signal-safe. */
const char *llm_status_name(llm_status status);

/* The status code of an error; LLM_OK for NULL. S, callback-safe. */
llm_status llm_error_code(const struct llm_error *error);

/* The message of an error: what, where, expected, got, what to do. Borrowed until the error is freed; "" for NULL.
 * `out_length` may be NULL. S, callback-safe. */
const char *llm_error_message(const struct llm_error *error,
                              size_t *out_length);

/* A number that belongs to the error, by LLM_DETAIL key. NOT_FOUND if the error has none of that kind,
 * INVALID_ARG for an unknown key. S, callback-safe. */
llm_status llm_error_detail(const struct llm_error *error,
                            int32_t key,
                            int64_t *out_value);

/* Frees an error; NULL is allowed. S, callback-safe. */
void llm_error_free(struct llm_error *error);

/* The bytes, borrowed until the buffer is freed; a NUL follows the last one. NULL for NULL. S. */
const void *llm_buffer_data(const struct llm_buffer *buffer);

/* How many bytes, without the NUL. 0 for NULL. S. */
size_t llm_buffer_size(const struct llm_buffer *buffer);

/* Frees a buffer; NULL is allowed. S. */
void llm_buffer_free(struct llm_buffer *buffer);

/* Makes a flag that is not set, without a deadline. The host frees it; calls that were given it keep what they
 * need. NULL_ARG, NO_MEMORY. I. */
llm_status llm_cancel_new(struct llm_cancel **out_cancel);

/* Sets the flag: calls that were given it end with CANCELLED, within a layer. One atomic store, without a lock.
 * NULL is ignored. I, callback-safe, async-signal-safe. */
void llm_cancel_trigger(const struct llm_cancel *cancel);

/* Sets a deadline this many milliseconds from now, in place of an earlier one; calls end with DEADLINE after it.
 * NULL_ARG. I, callback-safe. */
llm_status llm_cancel_set_deadline_ms(const struct llm_cancel *cancel,
                                      uint64_t milliseconds);

/* 1 if the flag is set, 0 if not (a deadline that passed is not the flag); 0 for NULL. Without a lock.
 * I, callback-safe, async-signal-safe. */
int32_t llm_cancel_is_set(const struct llm_cancel *cancel);

/* Clears the flag and the deadline, for the next call. NULL_ARG. I, callback-safe. */
llm_status llm_cancel_reset(const struct llm_cancel *cancel);

/* Frees a cancel handle; NULL is allowed. A signal handler must not use it any more. I. */
void llm_cancel_free(struct llm_cancel *cancel);

/* Makes options with defaults: the cores the process may use, no limit, silence. NULL_ARG, NO_MEMORY. X. */
llm_status llm_runtime_options_new(struct llm_runtime_options **out_options);

/* How many threads compute, the calling one included; 0: as many as the cores the process may use. NULL_ARG,
 * BUSY. X. */
llm_status llm_runtime_options_set_threads(struct llm_runtime_options *options,
                                           uint32_t threads);

/* Binds thread i to core `cores[i mod count]`. Thread 0 is the calling one, which is left where it is; `count` 0
 * binds nobody (default). Linux only, elsewhere without effect. NULL_ARG, BUSY. X. */
llm_status llm_runtime_options_set_affinity(struct llm_runtime_options *options,
                                            const uint32_t *cores,
                                            size_t count);

/* Niceness of the compute threads: -20 (first served; the system may refuse it and leaves them as they are) to 19; 0:
 * the one they inherit (default). The calling thread is left as it is. llm_runtime_new checks it. Linux only, elsewhere
 * without effect. NULL_ARG, BUSY. X. */
llm_status llm_runtime_options_set_priority(struct llm_runtime_options *options,
                                            int32_t niceness);

/* An instruction set in place of the best one ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "neon-dotprod",
 * "neon-i8mm"), for tests; NULL: the best one (default). llm_runtime_new checks it. BAD_UTF8, NULL_ARG, BUSY. X. */
llm_status llm_runtime_options_set_isa(struct llm_runtime_options *options,
                                       const char *name,
                                       size_t name_length);

/* Whether the environment is read (default) or, with 0, not: LLM_ISA then means nothing. NULL_ARG, BUSY. X. */
llm_status llm_runtime_options_set_environment(struct llm_runtime_options *options,
                                               int32_t read);

/* Bytes of memory that models and sessions of the runtime may allocate, mapped weights not counted; 0: no limit.
 * What would exceed it gets BUDGET. NULL_ARG, BUSY. X. */
llm_status llm_runtime_options_set_host_limit(struct llm_runtime_options *options,
                                              uint64_t bytes);

/* Sends records up to this LLM_LOG level to a sink; without one nothing is logged anywhere. A sink with LLM_LOG_OFF is
 * told nothing until llm_runtime_set_log_level. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_runtime_options_set_log(struct llm_runtime_options *options,
                                       int32_t log_level,
                                       llm_log_fn sink,
                                       void *user_data,
                                       llm_drop_fn drop);

/* Frees options; NULL is allowed. X. */
void llm_runtime_options_free(struct llm_runtime_options *options);

/* Starts a runtime with its threads. NULL options are the defaults. The environment variable LLM_ISA names an
 * instruction set in place of the best one and of the options'. NULL_ARG, INVALID_ARG, UNSUPPORTED, NO_MEMORY, BUSY. I. */
llm_status llm_runtime_new(struct llm_runtime_options *options,
                           struct llm_runtime **out_runtime,
                           struct llm_error **out_err);

/* Another handle on the same runtime, to be freed as well. NULL_ARG, NO_MEMORY. I. */
llm_status llm_runtime_retain(const struct llm_runtime *runtime, struct llm_runtime **out_runtime);

/* Frees a runtime handle; NULL is allowed. The threads end with the last handle on the runtime, its models and
 * their sessions. I. */
void llm_runtime_free(struct llm_runtime *runtime);

/* How many devices the runtime can compute on; 0 for NULL. I. */
size_t llm_runtime_device_count(const struct llm_runtime *runtime);

/* Describes a device, 0 and up, into a struct whose struct_size the host has set. NOT_FOUND beyond the last, NULL_ARG,
 * INVALID_ARG. I. */
llm_status llm_runtime_device_info(const struct llm_runtime *runtime,
                                   size_t index,
                                   struct llm_device_info *out_info);

/* What the runtime's models, pools and sessions use, into a struct whose struct_size the host has set. Without a lock.
 * NULL_ARG, INVALID_ARG. I, callback-safe. */
llm_status llm_runtime_memory_use(const struct llm_runtime *runtime,
                                  struct llm_memory_use *out_use);

/* Gives memory back to the system, for an event of memory pressure: one of LLM_TRIM, of all KV pools of the runtime.
 * `out_bytes` (may be NULL) tells how many bytes it were. Waits for steps that are running. NULL_ARG, INVALID_ARG. I. */
llm_status llm_runtime_trim(const struct llm_runtime *runtime,
                            int32_t level,
                            uint64_t *out_bytes);

/* Changes what goes to the sink that the runtime was made with: records up to this LLM_LOG level, LLM_LOG_OFF for none.
 * NULL_ARG, INVALID_ARG. I, callback-safe. */
llm_status llm_runtime_set_log_level(const struct llm_runtime *runtime,
                                     int32_t log_level);

/* Makes options with defaults. NULL_ARG, NO_MEMORY. X. */
llm_status llm_model_options_new(struct llm_model_options **out_options);

/* Whether to map, to copy or to map and lock: one of LLM_LOAD. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_model_options_set_load_mode(struct llm_model_options *options, int32_t mode);

/* How much to check: one of LLM_VERIFY. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_model_options_set_verify(struct llm_model_options *options, int32_t verify);

/* Whether a thread of the model reads a mapped file in the background while the first tokens are computed: 1 (default)
 * or 0. It ends with the model at the latest. Linux only, elsewhere without effect. NULL_ARG, BUSY. X. */
llm_status llm_model_options_set_prefetch(struct llm_model_options *options,
                                          int32_t prefetch);

/* Tells a callback how far copying and full checking are; it may answer CANCEL. NULL takes it away. NULL_ARG,
 * BUSY. X. */
llm_status llm_model_options_set_progress(struct llm_model_options *options,
                                          llm_progress_fn progress,
                                          void *user_data,
                                          llm_drop_fn drop);

/* Frees options; NULL is allowed. X. */
void llm_model_options_free(struct llm_model_options *options);

/* Opens a file. The model keeps the runtime alive. Options and cancel may be NULL. NULL_ARG, BAD_UTF8, INVALID_ARG,
 * NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM (detail OFFSET), UNSUPPORTED, NO_MEMORY, BUDGET, CANCELLED,
 * DEADLINE, CALLBACK, BUSY. I on the runtime, X on the options. */
llm_status llm_model_open_path(const struct llm_runtime *runtime,
                               const char *path,
                               size_t path_length,
                               struct llm_model_options *options,
                               const struct llm_cancel *cancel,
                               struct llm_model **out_model,
                               struct llm_error **out_err);

/* Opens a part of a file by its descriptor: `length` bytes from `offset` on, 0 for the rest. The descriptor is
 * duplicated; the host closes its own. As llm_model_open_path. */
llm_status llm_model_open_fd(const struct llm_runtime *runtime,
                             int fd,
                             uint64_t offset,
                             uint64_t length,
                             struct llm_model_options *options,
                             const struct llm_cancel *cancel,
                             struct llm_model **out_model,
                             struct llm_error **out_err);

/* Opens a model in memory, which must stay unchanged until `drop` is called with `user_data` (after the model and all
 * that came from it are freed, and also when the call fails); `drop` may be NULL. With load mode copy, or where the
 * address is not a multiple of 64, the bytes are copied. As llm_model_open_path. */
llm_status llm_model_open_memory(const struct llm_runtime *runtime,
                                 const void *data,
                                 size_t length,
                                 void *user_data,
                                 llm_drop_fn drop,
                                 struct llm_model_options *options,
                                 const struct llm_cancel *cancel,
                                 struct llm_model **out_model,
                                 struct llm_error **out_err);

/* Describes a model, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG. S. */
llm_status llm_model_get_info(const struct llm_model *model, struct llm_model_info *out_info);

/* How many metadata entries the file has; 0 for NULL. S. */
size_t llm_model_meta_count(const struct llm_model *model);

/* Key of a metadata entry by index, borrowed until the model is freed; NULL beyond the last. `out_length` may be
 * NULL. S. */
const char *llm_model_meta_key_at(const struct llm_model *model,
                                  size_t index,
                                  size_t *out_length);

/* Value of a metadata entry by key, borrowed until the model is freed: texts as they are, everything else as JSON.
 * `out_length` may be NULL. NOT_FOUND, NULL_ARG, BAD_UTF8. S. */
llm_status llm_model_meta_get(const struct llm_model *model,
                              const char *key,
                              size_t key_length,
                              const char **out_value,
                              size_t *out_length);

/* Writes 32 bytes that name the model's contents, the same on every machine. NULL_ARG. S. */
llm_status llm_model_fingerprint(const struct llm_model *model, uint8_t *out_bytes);

/* Another handle on the same model, to be freed as well. NULL_ARG, NO_MEMORY. S. */
llm_status llm_model_retain(const struct llm_model *model, struct llm_model **out_model);

/* Frees a model handle; NULL is allowed. The weights go with the last handle on the model, its sessions and
 * tokenizers. S. */
void llm_model_free(struct llm_model *model);

/* Header, metadata and tensor table of a file as JSON, which the host frees: "version", "file_length", "identity",
 * "metadata", "tensors" (name, type, shape, offset, bytes). Reads no weights and needs no runtime. NULL_ARG,
 * BAD_UTF8, INVALID_ARG for what is no file, NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM, UNSUPPORTED. S. */
llm_status llm_model_inspect_path(const char *path,
                                  size_t path_length,
                                  struct llm_buffer **out_json,
                                  struct llm_error **out_err);

/* Reads a whole file and compares every checksum, without loading it. Progress (may be NULL) is told bytes and answers
 * LLM_CONTROL; it and the cancel handle (may be NULL) end the call. CHECKSUM with detail OFFSET for damage, and as
 * llm_model_inspect_path; CANCELLED, DEADLINE, CALLBACK. S. */
llm_status llm_model_verify_path(const char *path,
                                 size_t path_length,
                                 llm_progress_fn progress,
                                 void *user_data,
                                 llm_drop_fn drop,
                                 const struct llm_cancel *cancel,
                                 struct llm_error **out_err);

/* A model's tokenizer. The host frees it; it keeps what it needs of the model alive. NOT_FOUND if the file has
 * none, NULL_ARG. S. */
llm_status llm_model_tokenizer(const struct llm_model *model,
                               struct llm_tokenizer **out_tokenizer);

/* Text to ids, ask or fill. `flags` are of LLM_ENCODE. NULL_ARG, BAD_UTF8, INVALID_ARG, BUFFER_SMALL. S. */
llm_status llm_tokenizer_encode(const struct llm_tokenizer *tokenizer,
                                const char *text,
                                size_t text_length,
                                uint32_t flags,
                                llm_token *ids,
                                size_t cap,
                                size_t *out_needed);

/* A context and the text behind it, encoded as the one text that they are: ids of both, ask or fill, of which the first
 * `out_context` belong to the context; all behind those hold something of the text. No special token comes out of the
 * text, whatever `flags` say, and none that would stand behind it. For llm_session_score of the text after a prefill of
 * the context. NULL_ARG, BAD_UTF8, INVALID_ARG, BUFFER_SMALL. S. */
llm_status llm_tokenizer_encode_pair(const struct llm_tokenizer *tokenizer,
                                     const char *context,
                                     size_t context_length,
                                     const char *text,
                                     size_t text_length,
                                     uint32_t flags,
                                     llm_token *ids,
                                     size_t cap,
                                     size_t *out_needed,
                                     size_t *out_context);

/* Ids to bytes, ask or fill, without a NUL; not always UTF-8 (a text stream gives whole characters). `flags` are of
 * LLM_DECODE. NULL_ARG, INVALID_ARG for an id that is not in the vocabulary, BUFFER_SMALL. S. */
llm_status llm_tokenizer_decode(const struct llm_tokenizer *tokenizer,
                                const llm_token *ids,
                                size_t count,
                                uint32_t flags,
                                char *buf,
                                size_t cap,
                                size_t *out_needed);

/* The bytes one id adds in the middle of a text, borrowed until the tokenizer is freed; a NUL follows. `out_length`
 * may be NULL. NOT_FOUND for an id that is not in use, NULL_ARG. S. */
llm_status llm_tokenizer_token_bytes(const struct llm_tokenizer *tokenizer,
                                     llm_token id,
                                     const char **out_bytes,
                                     size_t *out_length);

/* Ids are below this; 0 for NULL. S. */
size_t llm_tokenizer_size(const struct llm_tokenizer *tokenizer);

/* The id of a token by LLM_SPECIAL name. NOT_FOUND if there is none, INVALID_ARG for an unknown name, NULL_ARG. S. */
llm_status llm_tokenizer_special(const struct llm_tokenizer *tokenizer,
                                 int32_t name,
                                 llm_token *out_id);

/* What a token is: flags of LLM_TOKEN, 0 for an id outside the vocabulary or NULL. S. */
uint32_t llm_tokenizer_flags(const struct llm_tokenizer *tokenizer, llm_token id);

/* 1 if the token ends a turn, else 0; 0 for NULL. S. */
int32_t llm_tokenizer_is_end(const struct llm_tokenizer *tokenizer, llm_token id);

/* Frees a tokenizer; NULL is allowed. S. */
void llm_tokenizer_free(struct llm_tokenizer *tokenizer);

/* Makes a stream at its beginning, which keeps the tokenizer alive. `flags` are of LLM_STREAM. NULL_ARG,
 * INVALID_ARG. X. */
llm_status llm_text_stream_new(const struct llm_tokenizer *tokenizer,
                               uint32_t flags,
                               struct llm_text_stream **out_stream);

/* Takes an id and lends the text it completes, until the next call on the stream; often empty in the middle of a
 * character. `out_length` may be NULL. NULL_ARG, INVALID_ARG for an id that is not in the vocabulary, BUSY. X. */
llm_status llm_text_stream_push(struct llm_text_stream *stream,
                                llm_token id,
                                const char **out_text,
                                size_t *out_length);

/* Lends the rest, with U+FFFD for bytes that never became a character; the stream begins anew. `out_length` may
 * be NULL. NULL_ARG, BUSY. X. */
llm_status llm_text_stream_finish(struct llm_text_stream *stream,
                                  const char **out_text,
                                  size_t *out_length);

/* Forgets everything pushed. NULL_ARG, BUSY. X. */
llm_status llm_text_stream_reset(struct llm_text_stream *stream);

/* Frees a stream; NULL is allowed. X. */
void llm_text_stream_free(struct llm_text_stream *stream);

/* Makes an empty conversation. NULL_ARG, NO_MEMORY. X. */
llm_status llm_chat_new(struct llm_chat **out_chat);

/* Appends a message of text. The role is mostly "system", "user" or "assistant". NULL_ARG, BAD_UTF8. X. */
llm_status llm_chat_add(struct llm_chat *chat,
                        const char *role,
                        size_t role_length,
                        const char *content,
                        size_t content_length);

/* Appends a message given as a JSON object with at least "role". NULL_ARG, BAD_UTF8, INVALID_ARG. X. */
llm_status llm_chat_add_json(struct llm_chat *chat, const char *json, size_t json_length);

/* Sets the tools the model may call: a JSON list, or null for none. NULL_ARG, BAD_UTF8, INVALID_ARG. X. */
llm_status llm_chat_set_tools_json(struct llm_chat *chat,
                                   const char *json,
                                   size_t json_length);

/* Sets a variable the template can read, such as "enable_thinking", to a JSON value. NULL_ARG, BAD_UTF8,
 * INVALID_ARG. X. */
llm_status llm_chat_set_var_json(struct llm_chat *chat,
                                 const char *name,
                                 size_t name_length,
                                 const char *json,
                                 size_t json_length);

/* Frees a conversation; NULL is allowed. X. */
void llm_chat_free(struct llm_chat *chat);

/* Compiles a template from its Jinja source. `bos` and `eos` are the texts of the model's own tokens, which the
 * template reads as bos_token and eos_token; they may be NULL. The template runs in a sandbox with limits on
 * steps, depth and output. NULL_ARG, BAD_UTF8, BAD_FORMAT (detail LINE). S. */
llm_status llm_template_compile(const char *source,
                                size_t source_length,
                                const char *bos,
                                size_t bos_length,
                                const char *eos,
                                size_t eos_length,
                                struct llm_template **out_template,
                                struct llm_error **out_err);

/* The template a model's file brings: the default one for NULL, or the one of that name. NOT_FOUND if there is
 * none, NULL_ARG, BAD_UTF8, BAD_FORMAT. S. */
llm_status llm_model_template(const struct llm_model *model,
                              const char *name,
                              size_t name_length,
                              struct llm_template **out_template,
                              struct llm_error **out_err);

/* The source, borrowed until the template is freed; "" for NULL. `out_length` may be NULL. S. */
const char *llm_template_source(const struct llm_template *template_, size_t *out_length);

/* Renders a conversation to text, which the host frees. `flags` are of LLM_RENDER. INVALID_ARG with the template's
 * words where it refuses the conversation, BUDGET beyond a limit, NULL_ARG, BUSY. S on the template, X on the chat. */
llm_status llm_chat_render_text(struct llm_chat *chat,
                                const struct llm_template *template_,
                                uint32_t flags,
                                struct llm_buffer **out_text,
                                struct llm_error **out_err);

/* Renders a conversation to ids, ask or fill. What the host put into the conversation is encoded as plain text:
 * it never becomes a special token, whatever it spells. `flags` are of LLM_RENDER. As llm_chat_render_text, and
 * BUFFER_SMALL. S on template and tokenizer, X on the chat. */
llm_status llm_chat_render_tokens(struct llm_chat *chat,
                                  const struct llm_template *template_,
                                  const struct llm_tokenizer *tokenizer,
                                  uint32_t flags,
                                  llm_token *ids,
                                  size_t cap,
                                  size_t *out_needed,
                                  struct llm_error **out_err);

/* Takes a model's answer, or what there is of it, apart: a JSON object with `format` (plain, hermes, llama3, mistral,
 * deepseek or harmony, by the template's text) and `segments`, a list of objects with `type` (text, reasoning or
 * tool_call), `complete`, and `text` or `name`, `arguments` (JSON as text) and `id`. The text must hold the format's
 * marks: decode without LLM_DECODE_SKIP_SPECIAL. `flags` are of LLM_PARSE. The host frees the buffer. NULL_ARG,
 * BAD_UTF8, INVALID_ARG. S. */
llm_status llm_chat_parse(const struct llm_template *template_,
                          const char *text,
                          size_t text_length,
                          uint32_t flags,
                          struct llm_buffer **out_json,
                          struct llm_error **out_err);

/* Frees a template; NULL is allowed. S. */
void llm_template_free(struct llm_template *template_);

/* Makes options with defaults: room for one sequence of the model's trained context, pages of 64 tokens, type AUTO,
 * eviction LEAST_RECENT, a prefix cache, no memory for swapped sessions. NULL_ARG, NO_MEMORY. X. */
llm_status llm_kv_options_new(struct llm_kv_options **out_options);

/* Bytes that all pages together may take; 0: room for one sequence of the trained context. NULL_ARG, BUSY. X. */
llm_status llm_kv_options_set_budget_bytes(struct llm_kv_options *options,
                                           uint64_t bytes);

/* How many tokens a page holds: 16, 32 or 64. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_kv_options_set_page_tokens(struct llm_kv_options *options, uint32_t tokens);

/* How keys and values are stored: one of LLM_KV_TYPE. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_kv_options_set_type(struct llm_kv_options *options, int32_t kv_type);

/* Which cached pages go when no page is free: one of LLM_EVICTION. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_kv_options_set_eviction(struct llm_kv_options *options, int32_t eviction);

/* 1 (default): full pages are kept and found again by the tokens they hold, also by other sessions; 0: not. NULL_ARG,
 * BUSY. X. */
llm_status llm_kv_options_set_prefix_cache(struct llm_kv_options *options,
                                           int32_t prefix_cache);

/* Bytes beside the pool that swapped sessions may take; 0 (default): none can be swapped out. NULL_ARG, BUSY. X. */
llm_status llm_kv_options_set_swap_bytes(struct llm_kv_options *options,
                                         uint64_t bytes);

/* Frees options; NULL is allowed. X. */
void llm_kv_options_free(struct llm_kv_options *options);

/* Makes a pool for sessions of a model, which it keeps alive. Address space for the whole budget is reserved; memory is
 * taken page by page as sessions write. NULL options are the defaults. NULL_ARG, INVALID_ARG for a budget below one
 * page (detail NEEDED: its bytes), UNSUPPORTED, NO_MEMORY, BUSY. S on the model, X on the options. */
llm_status llm_kv_pool_new(const struct llm_model *model,
                           struct llm_kv_options *options,
                           struct llm_kv_pool **out_pool,
                           struct llm_error **out_err);

/* Another handle on the same pool, to be freed as well. NULL_ARG, NO_MEMORY. I. */
llm_status llm_kv_pool_retain(const struct llm_kv_pool *pool, struct llm_kv_pool **out_pool);

/* The pool's numbers, into a struct whose struct_size the host has set. Waits for a step that is running, a chunk of a
 * prefill at most. NULL_ARG, INVALID_ARG. I. */
llm_status llm_kv_pool_stats(const struct llm_kv_pool *pool,
                             struct llm_kv_stats *out_stats);

/* Frees at least `bytes` bytes of cached pages that nobody holds or has pinned, if there are so many; `out_freed` (may
 * be NULL) tells how many bytes it were. Waits as llm_kv_pool_stats. NULL_ARG. I. */
llm_status llm_kv_pool_evict(const struct llm_kv_pool *pool,
                             uint64_t bytes,
                             uint64_t *out_freed);

/* Forgets every cached page that no session holds, the pinned ones too. Waits as llm_kv_pool_stats. NULL_ARG. I. */
llm_status llm_kv_pool_clear_cache(const struct llm_kv_pool *pool);

/* Moves pages together and gives the memory of free ones back to the system; only the numbers show it. `out_moved`
 * (may be NULL) tells how many pages moved. Waits as llm_kv_pool_stats. NULL_ARG. I. */
llm_status llm_kv_pool_defrag(const struct llm_kv_pool *pool,
                              uint64_t *out_moved);

/* Changes the budget: cached pages go where they must, and a budget larger than any before copies the pages in use.
 * INVALID_ARG below one page; KV_FULL if more is held or pinned (detail NEEDED: pages), NO_MEMORY: nothing has changed
 * then. Waits as llm_kv_pool_stats. NULL_ARG. I. */
llm_status llm_kv_pool_resize(const struct llm_kv_pool *pool,
                              uint64_t budget_bytes,
                              struct llm_error **out_err);

/* Frees a pool handle; NULL is allowed. The pages go with the last handle on the pool and its last session. I. */
void llm_kv_pool_free(struct llm_kv_pool *pool);

/* Makes options with defaults: the model's trained context, chunks of 512, batch determinism, rollback on cancel.
 * NULL_ARG, NO_MEMORY. X. */
llm_status llm_session_options_new(struct llm_session_options **out_options);

/* How many tokens the session can hold at most; 0: as many as the model was trained for. NULL_ARG, BUSY. X. */
llm_status llm_session_options_set_max_tokens(struct llm_session_options *options,
                                              uint32_t max_tokens);

/* How many tokens a prefill computes at once, at least 1. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_session_options_set_chunk_tokens(struct llm_session_options *options,
                                                uint32_t chunk_tokens);

/* What the computed bits may depend on: one of LLM_DETERMINISM. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_session_options_set_determinism(struct llm_session_options *options,
                                               int32_t determinism);

/* 1 (default): a cancelled call leaves the session where it stood before; 0: at the last chunk that was completed.
 * NULL_ARG, BUSY. X. */
llm_status llm_session_options_set_cancel_rollback(struct llm_session_options *options,
                                                   int32_t rollback);

/* Pages the session leaves in a pool with eviction PRIORITY go after those of lower priority; 0 (default). NULL_ARG,
 * BUSY. X. */
llm_status llm_session_options_set_priority(struct llm_session_options *options,
                                            int32_t priority);

/* What happens when tokens do not fit behind those a session holds: one of LLM_OVERFLOW. The first `head_tokens`
 * tokens always stay; they must be fewer than the session can hold. Not used with LLM_OVERFLOW_ERROR. NULL_ARG,
 * INVALID_ARG, BUSY. X. */
llm_status llm_session_options_set_overflow(struct llm_session_options *options,
                                            int32_t overflow,
                                            uint32_t head_tokens);

/* Frees options; NULL is allowed. X. */
void llm_session_options_free(struct llm_session_options *options);

/* Makes an empty session, which keeps model and pool alive. Without a pool (NULL) it has pages of its own, as many as
 * its largest number of tokens takes. NULL options are the defaults. NULL_ARG, INVALID_ARG, MISMATCH for a pool of
 * another model, UNSUPPORTED for LLM_OVERFLOW_SHIFT with learned positions,
 * NO_MEMORY, BUDGET, BUSY. S on the model, I on the pool, X on the options. */
llm_status llm_session_new(const struct llm_model *model,
                           const struct llm_kv_pool *pool,
                           struct llm_session_options *options,
                           struct llm_session **out_session,
                           struct llm_error **out_err);

/* How many tokens the session holds. NULL_ARG, BUSY. X. */
llm_status llm_session_length(struct llm_session *session, uint32_t *out_length);

/* The ids the session holds, ask or fill. NULL_ARG, BUFFER_SMALL, BUSY. X. */
llm_status llm_session_copy_tokens(struct llm_session *session,
                                   llm_token *ids,
                                   size_t cap,
                                   size_t *out_needed);

/* How many tokens the session had to drop since it was empty, under LLM_OVERFLOW_RECOMPUTE or LLM_OVERFLOW_SHIFT.
 * NULL_ARG, BUSY. X. */
llm_status llm_session_dropped(struct llm_session *session,
                               uint64_t *out_dropped);

/* Makes room for `tokens` tokens more as the options' overflow says, if there is none: prefilling and decoding do it
 * by themselves, a batch does not. `cancel` and `out_dropped`, the number of tokens that went, may be NULL. Statuses
 * as llm_session_prefill. X. */
llm_status llm_session_make_room(struct llm_session *session,
                                 uint32_t tokens,
                                 const struct llm_cancel *cancel,
                                 uint32_t *out_dropped,
                                 struct llm_error **out_err);

/* Keeps the first `length` tokens. Logits are there again after the next prefill or decode. NULL_ARG, INVALID_ARG
 * if the session holds fewer, BUSY. X. */
llm_status llm_session_truncate(struct llm_session *session,
                                uint32_t length,
                                struct llm_error **out_err);

/* Empties the session. NULL_ARG, BUSY. X. */
llm_status llm_session_reset(struct llm_session *session);

/* Appends tokens, in chunks; logits of the last one are ready afterwards. Progress is told after each chunk; its
 * STOP ends with OK and what was computed, its CANCEL like the cancel handle. All but the tokens may be NULL.
 * `out_length` gets the number of tokens now held, also on failure. INVALID_ARG for an id that is not in the
 * vocabulary (detail TOKEN_INDEX), CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for logits that are not finite
 * (detail POSITION), CANCELLED, DEADLINE, CALLBACK, NULL_ARG, BUSY. X. */
llm_status llm_session_prefill(struct llm_session *session,
                               const llm_token *ids,
                               size_t count,
                               llm_prefill_fn progress,
                               void *user_data,
                               llm_drop_fn drop,
                               const struct llm_cancel *cancel,
                               uint32_t *out_length,
                               struct llm_error **out_err);

/* Appends one token; its logits are ready afterwards. Statuses as llm_session_prefill. X. */
llm_status llm_session_decode(struct llm_session *session,
                              llm_token id,
                              const struct llm_cancel *cancel,
                              struct llm_error **out_err);

/* Lends the logits behind the last token, one per id of the vocabulary, until the next call on the session.
 * `out_count` may be NULL. BAD_STATE on an empty session, NULL_ARG, BUSY. X. */
llm_status llm_session_logits(struct llm_session *session,
                              const float **out_logits,
                              size_t *out_count);

/* Copies the logits behind the last token, ask or fill. BAD_STATE on an empty session, NULL_ARG, BUFFER_SMALL,
 * BUSY. X. */
llm_status llm_session_copy_logits(struct llm_session *session,
                                   float *buf,
                                   size_t cap,
                                   size_t *out_needed);

/* The `count` likeliest next tokens, likeliest first, with the natural logarithms of their probabilities, into
 * arrays of `count`. Fewer than `count` are written only if the vocabulary is smaller; `out_count` (may be NULL) tells
 * how many. BAD_STATE on an empty session, NULL_ARG, BUSY. X. */
llm_status llm_session_top(struct llm_session *session,
                           llm_token *ids,
                           float *log_probabilities,
                           size_t count,
                           size_t *out_count);

/* Keeps the hidden vectors of the tokens computed from now on, the last 512 of them, for a self-drafting head: called
 * before the prefill, a generation that guesses with the model's own head (llm_spec_options_set_self) begins with what the
 * head can know of the prompt; else it knows only the tokens that follow. The results of the session stay the same; each
 * token takes a vector of the model's width. NULL_ARG, BUSY. X. */
llm_status llm_session_keep_hidden(struct llm_session *session);

/* Frees a session; NULL is allowed. One that a generation has goes when the generation does. X. */
void llm_session_free(struct llm_session *session);

/* Makes a session of the same pool, options, tokens and logits that goes its own way. Pages are shared; one that both
 * go on in is copied by whoever writes to it first. NULL_ARG, KV_FULL where a swapped session cannot come back,
 * NO_MEMORY, BUDGET, BUSY. X. */
llm_status llm_session_fork(struct llm_session *session,
                            struct llm_session **out_session,
                            struct llm_error **out_err);

/* Makes sure now that `tokens` tokens more will find pages, until the session is truncated, reset or swapped out.
 * CONTEXT_FULL, KV_FULL, BUDGET: nothing has changed then. NULL_ARG, BUSY. X. */
llm_status llm_session_reserve(struct llm_session *session,
                               uint32_t tokens,
                               struct llm_error **out_err);

/* How many tokens at the beginning of `ids` need not be computed: those the session holds, or those that its pool
 * could give to an empty session like it, whichever are more. NULL_ARG, BUSY. X. */
llm_status llm_session_match_prefix(struct llm_session *session,
                                    const llm_token *ids,
                                    size_t count,
                                    size_t *out_tokens);

/* Protects the session's full pages from eviction, also after its end, until llm_session_unpin of a session that holds
 * them or llm_kv_pool_clear_cache. `out_tokens` (may be NULL) tells how many tokens those hold: 0 without a prefix
 * cache, as in a private pool. NULL_ARG, BUSY. X. */
llm_status llm_session_pin(struct llm_session *session,
                           size_t *out_tokens);

/* Takes back one llm_session_pin of each full page. `out_tokens` (may be NULL) tells how many tokens those hold.
 * NULL_ARG, BUSY. X. */
llm_status llm_session_unpin(struct llm_session *session,
                             size_t *out_tokens);

/* Copies the session's pages to memory beside the pool and gives them back. The next call that needs them brings them
 * back by itself; tokens and logits stay readable. BUDGET where the pool's swap bytes would be passed (detail NEEDED),
 * NO_MEMORY: nothing has changed then. NULL_ARG, BUSY. X. */
llm_status llm_session_swap_out(struct llm_session *session,
                                struct llm_error **out_err);

/* Brings the pages of a swapped session back; without effect on another. KV_FULL, BUDGET: it is swapped out as before
 * then. NULL_ARG, BUSY. X. */
llm_status llm_session_swap_in(struct llm_session *session,
                               struct llm_error **out_err);

/* The session's numbers, into a struct whose struct_size the host has set. Waits for a step of another session of its
 * pool that is running. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_session_get_stats(struct llm_session *session,
                                 struct llm_session_stats *out_stats);

/* Appends tokens and tells how likely the model found each of them after those before it, as natural logarithms of
 * probabilities into an array of `count`; e to the mean of their negatives is the perplexity. The first token of an
 * empty session follows nothing: its score is NaN. With `top` above 0 the likeliest tokens at each place, likeliest
 * first, go to arrays of `count` times `top`; places without a token get the id -1 and NaN. Scratch is a few rows of the
 * vocabulary's size, whatever `count` is. Logits of the last token are ready afterwards. Progress as in
 * llm_session_prefill; its STOP ends with the scores of the tokens that are held then. Arrays of `top` may be NULL where
 * it is 0; so may all from `progress` on. `out_scored` gets the number of tokens scored. BAD_STATE where the session
 * holds tokens but no logits of the last one, INVALID_ARG for an id that is not in the vocabulary (detail TOKEN_INDEX),
 * CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for logits that are not finite (detail POSITION), CANCELLED,
 * DEADLINE, CALLBACK, NULL_ARG, BUSY; the session is then as before. X. */
llm_status llm_session_score(struct llm_session *session,
                             const llm_token *ids,
                             size_t count,
                             float *log_probabilities,
                             size_t top,
                             llm_token *top_ids,
                             float *top_log_probabilities,
                             llm_prefill_fn progress,
                             void *user_data,
                             llm_drop_fn drop,
                             const struct llm_cancel *cancel,
                             size_t *out_scored,
                             struct llm_error **out_err);

/* Appends tokens and pools their hidden states (behind the last layer, after the final norm) into one vector of the
 * model's width, ask or fill: `pooling` is one of LLM_POOLING, `normalise` 1 makes its length 1. Tokens the session held
 * before are context and not pooled; reset it between texts. There are no logits afterwards. `cancel` and `out_needed`
 * may be NULL. BUFFER_SMALL (nothing is computed then), INVALID_ARG without tokens and for an id that is not in the
 * vocabulary (detail TOKEN_INDEX), CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for values that are not finite
 * (detail POSITION), CANCELLED, DEADLINE, NULL_ARG, BUSY; the session is then as before. X. */
llm_status llm_session_embedding(struct llm_session *session,
                                 const llm_token *ids,
                                 size_t count,
                                 int32_t pooling,
                                 int32_t normalise,
                                 const struct llm_cancel *cancel,
                                 float *buf,
                                 size_t cap,
                                 size_t *out_needed,
                                 struct llm_error **out_err);

/* Appends tokens and gives the hidden states (behind the last layer, after the final norm) of those at the indices
 * `at`, which ascend and are below `count`: `at_count` rows of the model's width, ask or fill. There are no logits
 * afterwards. `cancel` and `out_needed` may be NULL. Statuses as llm_session_embedding. X. */
llm_status llm_session_hidden(struct llm_session *session,
                              const llm_token *ids,
                              size_t count,
                              const size_t *at,
                              size_t at_count,
                              const struct llm_cancel *cancel,
                              float *buf,
                              size_t cap,
                              size_t *out_needed,
                              struct llm_error **out_err);

/* Opens an adapter for a model: a file made by `libllm convert` from PEFT's layout. It is mapped, and read once for its
 * checksums. The host frees it with llm_adapter_free; sessions that use it keep it. NULL_ARG, BAD_UTF8, INVALID_ARG,
 * NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM (detail OFFSET), MISMATCH where it does not belong to the model,
 * NO_MEMORY, BUDGET. S on the model. */
llm_status llm_adapter_open_path(const struct llm_model *model,
                                 const char *path,
                                 size_t path_length,
                                 struct llm_adapter **out_adapter,
                                 struct llm_error **out_err);

/* Opens an adapter in memory, which must stay unchanged until `drop` is called with `user_data` (after the adapter and
 * all sessions that use it are done with it, and also when the call fails); `drop` may be NULL. Where the address is not
 * a multiple of 64 the bytes are copied. As llm_adapter_open_path. */
llm_status llm_adapter_open_memory(const struct llm_model *model,
                                   const void *data,
                                   size_t length,
                                   void *user_data,
                                   llm_drop_fn drop,
                                   struct llm_adapter **out_adapter,
                                   struct llm_error **out_err);

/* Describes an adapter, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG. S. */
llm_status llm_adapter_get_info(const struct llm_adapter *adapter,
                                struct llm_adapter_info *out_info);

/* Frees an adapter; NULL is allowed. Sessions that use it go on with it. S. */
void llm_adapter_free(struct llm_adapter *adapter);

/* Runs a session with `count` adapters from now on, each with a factor on its change; 0: with the model as it is. Their
 * changes are added in the order given. They are part of what cached prefixes are found by and of snapshots, and stay
 * when the session is reset or forked. `flags` is 0 or LLM_ADAPTERS_RECOMPUTE, `cancel` may be NULL and ends only such a
 * computation. BAD_STATE for a session that holds tokens, without the flag; MISMATCH for an adapter of another model;
 * INVALID_ARG, NULL_ARG, BUSY: nothing has changed then. As llm_session_prefill where tokens are computed again; the
 * session then has the adapters it had and is empty. X. */
llm_status llm_session_set_adapters(struct llm_session *session,
                                    const struct llm_adapter *const *adapters,
                                    const float *scales,
                                    size_t count,
                                    uint32_t flags,
                                    const struct llm_cancel *cancel,
                                    struct llm_error **out_err);

/* Tells what `sessions` sessions with these options take, each full, before any is made; of the KV options, page and
 * type count. NULL options are the defaults. `limit_bytes` 0: the runtime's limit, and without one the machine's memory
 * less the mapped file. The plan is into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG also for no
 * sessions, UNSUPPORTED, BUSY. S on the model, X on the options. */
llm_status llm_model_plan(const struct llm_model *model,
                          struct llm_kv_options *kv_options,
                          struct llm_session_options *session_options,
                          uint32_t sessions,
                          uint64_t limit_bytes,
                          struct llm_memory_plan *out_plan,
                          struct llm_error **out_err);

/* Fills a struct, whose struct_size the host has set, with defaults. NULL_ARG, INVALID_ARG. S. */
llm_status llm_sampling_params_init(struct llm_sampling_params *params);

/* Makes a sampler; NULL params are the defaults. NULL_ARG, INVALID_ARG naming the parameter. X. */
llm_status llm_sampler_new(const struct llm_sampling_params *params,
                           struct llm_sampler **out_sampler,
                           struct llm_error **out_err);

/* Makes a sampler whose chain is given as text, such as "penalties=1.1;dry=0.8;top_k=40;temperature=0.8;mirostat=5":
 * filters in the order they act, their values behind `=`, separated by commas. The filters are bias, penalties, dry,
 * top_k, typical, top_p, min_p, xtc, temperature, mirostat, which is also the order of llm_sampler_new; values that are
 * left out are those of `params` (NULL: the defaults). NULL_ARG, BAD_UTF8, INVALID_ARG naming what is wrong. X. */
llm_status llm_sampler_new_chain(const struct llm_sampling_params *params,
                                 const char *chain,
                                 size_t chain_length,
                                 struct llm_sampler **out_sampler,
                                 struct llm_error **out_err);

/* A sampler of its own with the same parameters, history, constraint and processors, and a stream of noise of its own.
 * NULL_ARG, BUSY, NO_MEMORY. X. */
llm_status llm_sampler_fork(struct llm_sampler *sampler,
                            struct llm_sampler **out_sampler);

/* Adds the host's own code at a stage, one of LLM_STAGE. `pure` is 1 where it looks at position, ids and logits alone:
 * without that nothing can be drafted for the sampler. It runs on the thread of each call that chooses a token; forks
 * share it, so that it may run on several threads. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_sampler_add_processor(struct llm_sampler *sampler,
                                     int32_t stage,
                                     int32_t pure,
                                     llm_processor_fn function,
                                     void *user_data,
                                     llm_drop_fn drop);

/* Forgets the accepted tokens and puts the constraint back to its beginning; parameters and bias stay. NULL_ARG, BUSY. X. */
llm_status llm_sampler_reset(struct llm_sampler *sampler);

/* Replaces the values added to the logits of `count` tokens, given as parallel arrays; -INFINITY forbids a token.
 * NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_sampler_set_bias(struct llm_sampler *sampler,
                                const llm_token *ids,
                                const float *values,
                                size_t count);

/* Chooses a token from a session's current logits, without accepting it. `out_log_probability` is the token's under
 * the model alone; it may be NULL. BAD_STATE on an empty session, DEAD_END if constraint, bias and filters
 * left no token, BUDGET where the constraint meets its limits, NULL_ARG, BUSY. X on both. */
llm_status llm_sampler_sample(struct llm_sampler *sampler,
                              struct llm_session *session,
                              llm_token *out_id,
                              float *out_log_probability,
                              struct llm_error **out_err);

/* Runs the same pipeline on a row of the host's own, one logit per id, as if the token at `position` were to be chosen:
 * constraint, processors and chain change `logits` in place, -INFINITY for what they took away. Nothing is accepted.
 * `out_id` (may be NULL) gets the token that llm_sampler_sample would choose, `out_log_probability` (may be NULL) its
 * log-probability under the row as it was given. DEAD_END where no token is left, only with an `out_id`; INVALID_ARG for
 * NaN or +INFINITY (detail TOKEN_INDEX); BUDGET, CANCELLED, CALLBACK; the row is untouched then. NULL_ARG, BUSY. X. */
llm_status llm_sampler_apply(struct llm_sampler *sampler,
                             uint64_t position,
                             float *logits,
                             size_t count,
                             llm_token *out_id,
                             float *out_log_probability,
                             struct llm_error **out_err);

/* Takes tokens into the history that penalties look at, and into the constraint: each chosen one, and, before a
 * constraint is set, the prompt's if they shall count. The only way a sampler's state moves on. NULL_ARG, INVALID_ARG
 * also for a token that the constraint forbids (detail TOKEN_INDEX; those before it are taken), BUSY. X. */
llm_status llm_sampler_accept(struct llm_sampler *sampler,
                              const llm_token *ids,
                              size_t count,
                              struct llm_error **out_err);

/* Frees a sampler; NULL is allowed. X. */
void llm_sampler_free(struct llm_sampler *sampler);

/* Bytes of a snapshot of the session as it is, with the state of a sampler unless that is NULL. NULL_ARG, BUSY. X on
 * both. */
llm_status llm_session_snapshot_size(struct llm_session *session,
                                     struct llm_sampler *sampler,
                                     size_t *out_bytes);

/* Writes the session (tokens, pages, logits) to a buffer, ask or fill, with the state of a sampler unless that is NULL:
 * parameters, bias, noise, accepted tokens, what filters learned; not the host's processors, and of a constraint only
 * the tokens under it. Needs as much memory again during the call. BUFFER_SMALL, UNSUPPORTED, NO_MEMORY, KV_FULL where a
 * swapped session cannot come back, NULL_ARG, BUSY. X on both. */
llm_status llm_session_snapshot_buffer(struct llm_session *session,
                                       struct llm_sampler *sampler,
                                       void *buf,
                                       size_t cap,
                                       size_t *out_needed,
                                       struct llm_error **out_err);

/* As llm_session_snapshot_buffer, to a file: written beside it under another name and renamed into place. IO, BAD_UTF8,
 * NOT_FOUND where its directory is not there, INVALID_ARG, and as there. X on both. */
llm_status llm_session_snapshot_path(struct llm_session *session,
                                     struct llm_sampler *sampler,
                                     const char *path,
                                     size_t path_length,
                                     struct llm_error **out_err);

/* Describes a snapshot in memory, into a struct whose struct_size the host has set. The checksum is compared. Needs no
 * model. BAD_FORMAT, BAD_VERSION, CHECKSUM, NULL_ARG, INVALID_ARG. S. */
llm_status llm_snapshot_inspect_buffer(const void *data,
                                       size_t length,
                                       struct llm_snapshot_info *out_info,
                                       struct llm_error **out_err);

/* Describes the snapshot in a file. NOT_FOUND, IO, BAD_UTF8, INVALID_ARG for what is no file, NO_MEMORY, and as
 * llm_snapshot_inspect_buffer. S. */
llm_status llm_snapshot_inspect_path(const char *path,
                                     size_t path_length,
                                     struct llm_snapshot_info *out_info,
                                     struct llm_error **out_err);

/* Makes an empty session, and a sampler unless that is NULL, what a snapshot holds: both go on with the same bits. The
 * sampler keeps its processors, which must be those of the saved one, and its constraint, which takes the saved tokens
 * again. Everything is checked before anything changes. BAD_STATE if the session holds tokens; BAD_FORMAT, BAD_VERSION,
 * CHECKSUM for damaged bytes; MISMATCH for another model, KV type, page size, determinism, rotary length, adapters,
 * processors or constraint; NOT_FOUND where a sampler is given and none was saved; CONTEXT_FULL, KV_FULL, BUDGET,
 * NO_MEMORY: all is as before then. NULL_ARG, BUSY. X on both. */
llm_status llm_session_restore_buffer(struct llm_session *session,
                                      struct llm_sampler *sampler,
                                      const void *data,
                                      size_t length,
                                      struct llm_error **out_err);

/* As llm_session_restore_buffer, from a file. NOT_FOUND also where there is no such file, INVALID_ARG for what is no file,
 * IO, BAD_UTF8, and as there. X on both. */
llm_status llm_session_restore_path(struct llm_session *session,
                                    struct llm_sampler *sampler,
                                    const char *path,
                                    size_t path_length,
                                    struct llm_error **out_err);

/* Text that is JSON and valid under a schema (JSON Schema, drafts 4 to 2020-12), with the properties in the schema's
 * order. The first compilation over a tokenizer takes time in proportion to its vocabulary. `max_bytes` limits the
 * text, `max_work` the steps of compiling and of each token; 0 for the defaults. The constraint keeps what it needs of
 * the tokenizer. SCHEMA where it is no schema or asks what cannot be held to (the message begins with the path),
 * BUDGET beyond a limit, CANCELLED, DEADLINE, UNSUPPORTED in a build without constraints, NULL_ARG, BAD_UTF8. S. */
llm_status llm_constraint_compile_json_schema(const struct llm_tokenizer *tokenizer,
                                              const char *text,
                                              size_t text_length,
                                              size_t max_bytes,
                                              uint64_t max_work,
                                              const struct llm_cancel *cancel,
                                              struct llm_constraint **out_constraint,
                                              struct llm_error **out_err);

/* Text that as a whole matches a regular expression, without look-around. As llm_constraint_compile_json_schema, with
 * GRAMMAR for a text that is no expression. S. */
llm_status llm_constraint_compile_regex(const struct llm_tokenizer *tokenizer,
                                        const char *text,
                                        size_t text_length,
                                        size_t max_bytes,
                                        uint64_t max_work,
                                        const struct llm_cancel *cancel,
                                        struct llm_constraint **out_constraint,
                                        struct llm_error **out_err);

/* Text that follows a grammar in Lark's notation from its rule `start` on. As llm_constraint_compile_regex. S. */
llm_status llm_constraint_compile_lark(const struct llm_tokenizer *tokenizer,
                                       const char *text,
                                       size_t text_length,
                                       size_t max_bytes,
                                       uint64_t max_work,
                                       const struct llm_cancel *cancel,
                                       struct llm_constraint **out_constraint,
                                       struct llm_error **out_err);

/* One of `count` texts, given as parallel arrays of pointers and lengths. As llm_constraint_compile_regex, and
 * INVALID_ARG without any text. S. */
llm_status llm_constraint_compile_choice(const struct llm_tokenizer *tokenizer,
                                         const char *const *texts,
                                         const size_t *text_lengths,
                                         size_t count,
                                         size_t max_bytes,
                                         uint64_t max_work,
                                         const struct llm_cancel *cancel,
                                         struct llm_constraint **out_constraint,
                                         struct llm_error **out_err);

/* Frees a constraint; NULL is allowed. What was made from it goes on. S. */
void llm_constraint_free(struct llm_constraint *constraint);

/* Puts the tokens that a sampler accepts from now on under a constraint, from its beginning; NULL takes it away. The
 * prompt is to be accepted before. A generation ends with LLM_REASON_COMPLETE where nothing more may follow. NULL_ARG,
 * BUSY. X on the sampler, S on the constraint. */
llm_status llm_sampler_set_constraint(struct llm_sampler *sampler,
                                      const struct llm_constraint *constraint);

/* The beginning of a text under a constraint. NULL_ARG, NO_MEMORY. S on the constraint. */
llm_status llm_constraint_state_new(const struct llm_constraint *constraint,
                                    struct llm_constraint_state **out_state);

/* The tokens that may follow, ask or fill: one bit per id, from the lowest of the first word on; ids beyond may not.
 * BUDGET where the limits are met, DEAD_END where nothing fits, NULL_ARG, BUSY, BUFFER_SMALL. X. */
llm_status llm_constraint_state_mask(struct llm_constraint_state *state,
                                     uint32_t *words,
                                     size_t cap,
                                     size_t *out_needed,
                                     struct llm_error **out_err);

/* Takes a token in. INVALID_ARG for one that may not follow (nothing changes), BUDGET, NULL_ARG, BUSY. X. */
llm_status llm_constraint_state_advance(struct llm_constraint_state *state,
                                        llm_token id,
                                        struct llm_error **out_err);

/* The tokens that follow in any case, in order, ask or fill; none where there is a choice. BUDGET, NULL_ARG, BUSY,
 * BUFFER_SMALL. X. */
llm_status llm_constraint_state_forced(struct llm_constraint_state *state,
                                       llm_token *ids,
                                       size_t cap,
                                       size_t *out_needed,
                                       struct llm_error **out_err);

/* Whether nothing but an end can follow: 1 or 0. NULL_ARG, BUSY. X. */
llm_status llm_constraint_state_is_complete(struct llm_constraint_state *state,
                                            int32_t *out_complete);

/* A state of its own at the same place. NULL_ARG, BUSY, NO_MEMORY. X. */
llm_status llm_constraint_state_fork(struct llm_constraint_state *state,
                                     struct llm_constraint_state **out_state);

/* Frees a state; NULL is allowed. X. */
void llm_constraint_state_free(struct llm_constraint_state *state);

/* Makes options with defaults: tokens are looked up in the session's own text, 1 to 8 at a time, as long as that pays.
 * NULL_ARG, NO_MEMORY. X. */
llm_status llm_spec_options_new(struct llm_spec_options **out_options);

/* Lets a second model guess, from `least` to `most` tokens at a time (1 ≤ least ≤ most ≤ 32). Its vocabulary has to be
 * that of the model it guesses for (llm_spec_check). Keys and values go to `pool`, a pool of the draft; NULL: each
 * generation has pages of its own. Model and pool are kept. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_spec_options_set_draft_model(struct llm_spec_options *options,
                                            const struct llm_model *draft,
                                            const struct llm_kv_pool *pool,
                                            uint32_t least,
                                            uint32_t most,
                                            struct llm_error **out_err);

/* Looks up what followed the last tokens before, in the session's own tokens and in a corpus (copied; NULL for none).
 * A match is `least_match` to `most_match` tokens long (1 ≤ least ≤ most ≤ 1024); 3 to 16 are the defaults. NULL_ARG,
 * INVALID_ARG, BUSY. X. */
llm_status llm_spec_options_set_ngram(struct llm_spec_options *options,
                                      uint32_t least_match,
                                      uint32_t most_match,
                                      const llm_token *corpus,
                                      size_t corpus_count,
                                      struct llm_error **out_err);

/* Lets the second model in the model's own file guess: a self-drafting head, or a small model that `libllm convert
 * --draft` put there. llm_spec_check answers UNSUPPORTED for a file without one. NULL_ARG, BUSY. X. */
llm_status llm_spec_options_set_self(struct llm_spec_options *options);

/* Guesses from `least` to `most` tokens at a time (1 ≤ least ≤ most ≤ 32). NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_spec_options_set_lengths(struct llm_spec_options *options,
                                        uint32_t least,
                                        uint32_t most);

/* 1 (default): as many guesses as lately brought the most tokens by time, and none for a while where they do not pay;
 * 0: the most at every step. NULL_ARG, BUSY. X. */
llm_status llm_spec_options_set_adaptive(struct llm_spec_options *options,
                                         int32_t adaptive);

/* What guessing has to reach to go on, in tokens by time over those without, 0 to 100; 1.03 is the default. NULL_ARG,
 * INVALID_ARG, BUSY. X. */
llm_status llm_spec_options_set_min_gain(struct llm_spec_options *options,
                                         float min_gain);

/* Frees options; NULL is allowed. X. */
void llm_spec_options_free(struct llm_spec_options *options);

/* Whether tokens can be guessed so for a model: OK, UNSUPPORTED without the second model that was asked for, or MISMATCH naming the first difference of the draft's vocabulary
 * (number of ids, special token, text of a token). NULL_ARG, INVALID_ARG, BUSY. S; the options X. */
llm_status llm_spec_check(const struct llm_model *target,
                          struct llm_spec_options *options,
                          struct llm_error **out_err);

/* Makes options with defaults: 128 tokens, the model's own end tokens. NULL_ARG, NO_MEMORY. X. */
llm_status llm_generation_options_new(struct llm_generation_options **out_options);

/* How many tokens to choose at most; 0: until something else ends it. NULL_ARG, BUSY. X. */
llm_status llm_generation_options_set_max_tokens(struct llm_generation_options *options,
                                                 uint32_t max_tokens);

/* Ends the generation where this text appears, whatever the tokens' borders; the text itself is withheld.
 * NULL_ARG, BAD_UTF8, INVALID_ARG for an empty text, BUSY. X. */
llm_status llm_generation_options_add_stop_text(struct llm_generation_options *options,
                                                const char *text,
                                                size_t text_length);

/* Ends the generation where this token is chosen. NULL_ARG, INVALID_ARG for a negative id, BUSY. X. */
llm_status llm_generation_options_add_stop_token(struct llm_generation_options *options,
                                                 llm_token id);

/* 1: go on past the model's end tokens; 0 (default): end there. NULL_ARG, BUSY. X. */
llm_status llm_generation_options_set_ignore_end(struct llm_generation_options *options,
                                                 int32_t ignore_end);

/* 1: begin with an event that tells the tokens the session holds already, and their text; 0 (default): not. NULL_ARG,
 * BUSY. X. */
llm_status llm_generation_options_set_echo(struct llm_generation_options *options,
                                           int32_t echo);

/* How many of the likeliest tokens llm_generation_top tells of each choice; 0 (default): none. NULL_ARG, BUSY. X. */
llm_status llm_generation_options_set_top_logprobs(struct llm_generation_options *options,
                                                   uint32_t top_logprobs);

/* Guesses tokens and verifies several in one step; `spec` is copied, NULL (default) takes it away. Tokens and text are
 * those of a generation without. An event may tell several tokens then. Nothing is guessed for a sampler with an impure
 * processor. NULL_ARG, BUSY. X. */
llm_status llm_generation_options_set_spec(struct llm_generation_options *options,
                                           struct llm_spec_options *spec);

/* Frees options; NULL is allowed. X. */
void llm_generation_options_free(struct llm_generation_options *options);

/* Begins a generation behind the tokens a session holds. The generation has session and sampler for its lifetime:
 * meanwhile calls on them return BUSY (they may be freed; they go when the generation does). Without a tokenizer in
 * the file all texts are empty. NULL options are the defaults. NULL_ARG, BUSY, UNSUPPORTED, BAD_FORMAT for a damaged
 * tokenizer, INVALID_ARG for stop texts without a tokenizer and for a pool that is not the draft's, MISMATCH for a draft
 * of another vocabulary, NO_MEMORY, BUDGET. X. */
llm_status llm_generation_new(struct llm_session *session,
                              struct llm_sampler *sampler,
                              struct llm_generation_options *options,
                              struct llm_generation **out_generation,
                              struct llm_error **out_err);

/* Computes the next event. Returns MORE, or DONE with the last event. A cancel handle (may be NULL) ends the
 * generation with DONE and the reason CANCELLED; the session then stands where it stood before the call.
 * `out_event` may be NULL. After a failure the call can be repeated. NULL_ARG, BUSY, INVALID_ARG, BAD_STATE on
 * an empty session, NO_MEMORY, BUDGET, KV_FULL, UNSUPPORTED for logits that are not finite (detail POSITION), and what a
 * processor failed with. X. */
llm_status llm_generation_next(struct llm_generation *generation,
                               const struct llm_cancel *cancel,
                               struct llm_event *out_event,
                               struct llm_error **out_err);

/* Pushes events through a callback until the last one was told (DONE), the callback answers STOP (MORE: the
 * generation can go on later) or CANCEL (CANCELLED; the generation is ended), or a call fails. A cancel handle ends it
 * as in llm_generation_next. Statuses as there, and CALLBACK. X. */
llm_status llm_generation_run(struct llm_generation *generation,
                              llm_event_fn on_event,
                              void *user_data,
                              llm_drop_fn drop,
                              const struct llm_cancel *cancel,
                              struct llm_error **out_err);

/* The last event again, into a struct whose struct_size the host has set; after llm_batch_clear that of the batch's
 * step. BAD_STATE before the first, NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_generation_event(struct llm_generation *generation,
                                struct llm_event *out_event);

/* Ids that were told and that the session does not hold, ask or fill: one that waits to be decoded, an end or stop token.
 * A host that goes on with the sequence by itself decodes them first, if it wants them. NULL_ARG, BUFFER_SMALL, BUSY. X. */
llm_status llm_generation_unheld(struct llm_generation *generation,
                                 llm_token *ids,
                                 size_t cap,
                                 size_t *out_needed);

/* Text of the last event, borrowed until the next call on the generation. `out_length` may be NULL. NULL_ARG,
 * BUSY. X. */
llm_status llm_generation_text(struct llm_generation *generation,
                               const char **out_text,
                               size_t *out_length);

/* Ids of the last event, borrowed until the next call on the generation. `out_count` may be NULL. NULL_ARG,
 * BUSY. X. */
llm_status llm_generation_ids(struct llm_generation *generation,
                              const llm_token **out_ids,
                              size_t *out_count);

/* Why it ended: one of LLM_REASON. NULL_ARG, BUSY. X. */
llm_status llm_generation_reason(struct llm_generation *generation, int32_t *out_reason);

/* Counters so far, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_generation_perf(struct llm_generation *generation, struct llm_perf *out_perf);

/* What guessing did so far, into a struct whose struct_size the host has set; zeros where llm_generation_options_set_spec
 * was not called. NULL_ARG, INVALID_ARG, BUSY. X. */
llm_status llm_generation_spec_stats(struct llm_generation *generation,
                                     struct llm_spec_stats *out_stats);

/* Ends a generation and gives session and sampler back; NULL is allowed. X. */
void llm_generation_free(struct llm_generation *generation);

/* The likeliest tokens at the place of the last event's first token, and their log-probabilities under the model
 * alone, likeliest first: two arrays of `cap` entries, ask or fill. NULL_ARG, BUSY, BUFFER_SMALL. X. */
llm_status llm_generation_top(struct llm_generation *generation,
                              llm_token *ids,
                              float *log_probabilities,
                              size_t cap,
                              size_t *out_needed);

/* The log-probability (as llm_event has it of the first) and the likeliest tokens at the place of any of the last event's
 * ids, the `index`-th from 0: several are told where tokens were guessed. An id that a constraint put there, and one of an
 * echo, was not chosen: NaN, and no tokens. `out_log_probability` may be NULL, as the arrays where `cap` is 0.
 * INVALID_ARG for an index that the event does not have; else as llm_generation_top. X. */
llm_status llm_generation_top_at(struct llm_generation *generation,
                                 size_t index,
                                 float *out_log_probability,
                                 llm_token *ids,
                                 float *log_probabilities,
                                 size_t cap,
                                 size_t *out_needed);

/* Makes an empty batch for sessions of a pool, which it keeps alive. It keeps its buffers from step to step. NULL_ARG,
 * NO_MEMORY, BUDGET. I on the pool. */
llm_status llm_batch_new(const struct llm_kv_pool *pool,
                         struct llm_batch **out_batch,
                         struct llm_error **out_err);

/* Adds tokens that the step appends to a session, with the logits that LLM_WANT names; a session that got those of its
 * last token has them as after llm_session_prefill. The session answers BUSY until llm_batch_clear (it may be freed).
 * `out_slot` (may be NULL) gets the number of the slot: 0, 1, ... BAD_STATE in a batch that ran, INVALID_ARG for a
 * session of another pool, NULL_ARG, NO_MEMORY, BUSY. X on both. */
llm_status llm_batch_add_tokens(struct llm_batch *batch,
                                struct llm_session *session,
                                const llm_token *ids,
                                size_t count,
                                int32_t want,
                                size_t *out_slot,
                                struct llm_error **out_err);

/* Adds a generation that takes one step inside the batch's: what llm_generation_next decodes by itself is decoded
 * together with the other slots, and the same tokens are chosen. Its processors, if any, run in llm_batch_run. The
 * generation answers BUSY until llm_batch_clear (it may be freed); then llm_generation_event, _text and _ids tell what
 * the step gave. BAD_STATE in a batch that ran, INVALID_ARG for a session of another pool, NULL_ARG, BUSY. X on both. */
llm_status llm_batch_add_generation(struct llm_batch *batch,
                                    struct llm_generation *generation,
                                    size_t *out_slot,
                                    struct llm_error **out_err);

/* Runs the step: all slots together, in one forward pass. OK whatever became of single slots: one that cannot take part
 * (no page, no room, a bad id) is as before and the others run; llm_batch_slot_status tells. CANCELLED, DEADLINE,
 * NO_MEMORY, BUDGET: nothing ran, every session is as before, and the call can be repeated. BAD_STATE in a batch that
 * ran. NULL_ARG, BUSY. X. */
llm_status llm_batch_run(struct llm_batch *batch,
                         const struct llm_cancel *cancel,
                         struct llm_error **out_err);

/* What became of a slot: OK for tokens that were appended, MORE or DONE for a generation's event, or the failure, with
 * the detail SLOT: CONTEXT_FULL, KV_FULL, INVALID_ARG for an id that is not in the vocabulary or a determinism unlike
 * that of the first slot, and what llm_generation_next answers. The session is as before then. BAD_STATE before
 * llm_batch_run, INVALID_ARG without a detail for a slot that is not there, NULL_ARG, BUSY. X. */
llm_status llm_batch_slot_status(struct llm_batch *batch,
                                 size_t slot,
                                 struct llm_error **out_err);

/* Lends the logits that a slot asked for, one row per token of it in LLM_WANT_ALL, else one or none; for a generation
 * the rows it chose from. A row has one value per id of the vocabulary. `out_count` (may be NULL) is the number of
 * values of all rows. Until the next llm_batch_clear. Statuses as llm_batch_slot_status. X. */
llm_status llm_batch_slot_logits(struct llm_batch *batch,
                                 size_t slot,
                                 const float **out_logits,
                                 size_t *out_count,
                                 struct llm_error **out_err);

/* Empties the batch: sessions and generations are free again. NULL_ARG, BUSY. X. */
llm_status llm_batch_clear(struct llm_batch *batch);

/* Frees a batch; NULL is allowed. Sessions and generations in it are free again. X. */
void llm_batch_free(struct llm_batch *batch);

#ifdef __cplusplus
}
#endif

#endif  /* LLM_H */

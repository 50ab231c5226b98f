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
 * Ownership. `_new`, `_open_`, `_compile`, `_retain` give a handle, `_free` ends it and takes NULL. Each handle is
 * freed once. A handle keeps alive what it needs, so handles may be freed in any order. Everything passed in is
 * borrowed for the call and copied if kept, except callbacks and the memory of llm_model_open_memory.
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
/* The handle is in a call on another thread, or belongs to a generation. */
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
/* A snapshot, adapter or draft does not belong to this model. */
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

/* Bytes that the library owns: a text or a document. Class S. */
typedef struct llm_buffer llm_buffer;

/* A flag that ends a running call, with an optional deadline. Class I. */
typedef struct llm_cancel llm_cancel;

/* What went wrong in a call. Class S. */
typedef struct llm_error llm_error;

/* Result of a call: 0 is success, negative a failure, positive success with news. */
typedef int32_t llm_status;

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

/* JSON text: version, compiler profile, target, instruction sets, devices, licence. Static. S, callback-safe. */
const char *llm_build_info(void);

/* What this build can do, by LLM_CAPABILITY id: 0 absent, 1 present, or a number. UNSUPPORTED for ids it does not
 * know, NULL_ARG. S, callback-safe. */
llm_status llm_capability(int32_t id,
                          int64_t *out_value);

/* Name of a status code's constant, such as "LLM_IO"; "LLM_UNKNOWN" for other numbers. Static, never NULL.
 * S, callback-safe, async-signal-safe. */
const char *llm_status_name(llm_status status);

/* The status code of an error; LLM_OK for NULL. S, callback-safe. */
llm_status llm_error_code(const llm_error *error);

/* The message of an error: what, where, expected, got, what to do. Borrowed until the error is freed; "" for NULL.
 * `out_length` may be NULL. S, callback-safe. */
const char *llm_error_message(const llm_error *error,
                              size_t *out_length);

/* A number that belongs to the error, by LLM_DETAIL key. NOT_FOUND if the error has none of that kind,
 * INVALID_ARG for an unknown key. S, callback-safe. */
llm_status llm_error_detail(const llm_error *error,
                            int32_t key,
                            int64_t *out_value);

/* Frees an error; NULL is allowed. S, callback-safe. */
void llm_error_free(llm_error *error);

/* The bytes, borrowed until the buffer is freed; a NUL follows the last one. NULL for NULL. S. */
const void *llm_buffer_data(const llm_buffer *buffer);

/* How many bytes, without the NUL. 0 for NULL. S. */
size_t llm_buffer_size(const llm_buffer *buffer);

/* Frees a buffer; NULL is allowed. S. */
void llm_buffer_free(llm_buffer *buffer);

/* Makes a flag that is not set, without a deadline. The host frees it; calls that were given it keep what they
 * need. NULL_ARG, NO_MEMORY. I. */
llm_status llm_cancel_new(llm_cancel **out_cancel);

/* Sets the flag: calls that were given it end with CANCELLED, within a layer. One atomic store, without a lock.
 * NULL is ignored. I, callback-safe, async-signal-safe. */
void llm_cancel_trigger(const llm_cancel *cancel);

/* Sets a deadline this many milliseconds from now, in place of an earlier one; calls end with DEADLINE after it.
 * NULL_ARG. I, callback-safe. */
llm_status llm_cancel_set_deadline_ms(const llm_cancel *cancel,
                                      uint64_t milliseconds);

/* 1 if the flag is set, 0 if not (a deadline that passed is not the flag); 0 for NULL. Without a lock.
 * I, callback-safe, async-signal-safe. */
int32_t llm_cancel_is_set(const llm_cancel *cancel);

/* Clears the flag and the deadline, for the next call. NULL_ARG. I, callback-safe. */
llm_status llm_cancel_reset(const llm_cancel *cancel);

/* Frees a cancel handle; NULL is allowed. A signal handler must not use it any more. I. */
void llm_cancel_free(llm_cancel *cancel);

#ifdef __cplusplus
}
#endif

#endif  /* LLM_H */

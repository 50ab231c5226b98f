/* How alike texts are, and how likely: embed MODEL.llm TEXT TEXT...
 *
 * Each line: the cosine of the angle between the text's vector and the first one's, and the text's perplexity. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <llm.h>

static int failed(const char *what, llm_status status, llm_error **error) {
    if (status >= 0) return 0;
    fprintf(stderr, "%s: %s: %s\n", what, llm_status_name(status), llm_error_message(error ? *error : NULL, NULL));
    if (error != NULL) llm_error_free(*error);
    return 1;
}

int main(int argc, char **argv) {
    llm_runtime *runtime = NULL;
    llm_model *model = NULL;
    llm_tokenizer *tokenizer = NULL;
    llm_session *session = NULL;
    llm_error *error = NULL;
    llm_token ids[512];
    float scores[512], *first = NULL, *vector = NULL;
    size_t count, scored, width = 0, i;
    int text, done = 0;

    if (argc < 2) return fprintf(stderr, "usage: %s MODEL.llm TEXT...\n", argv[0]), 2;
    if (failed("runtime", llm_runtime_new(NULL, &runtime, &error), &error)) goto end;
    if (failed("open", llm_model_open_path(runtime, argv[1], LLM_NTS, NULL, NULL, &model, &error), &error)) goto end;
    if (failed("tokenizer", llm_model_tokenizer(model, &tokenizer), NULL)) goto end;
    if (failed("session", llm_session_new(model, NULL, NULL, &session, &error), &error)) goto end;
    for (text = 2; text < argc; text++) {
        double dot = 0, nats = 0;
        if (failed("encode", llm_tokenizer_encode(tokenizer, argv[text], LLM_NTS, LLM_ENCODE_ADD_SPECIAL, ids, 512,
                                                  &count), NULL)) goto end;
        if (width == 0) { /* ask, then fill */
            llm_session_embedding(session, ids, count, LLM_POOLING_MEAN, 1, NULL, NULL, 0, &width, NULL);
            first = malloc(width * sizeof *first);
            vector = malloc(width * sizeof *vector);
            if (first == NULL || vector == NULL) goto end;
        }
        /* A text of its own, not one that follows the text before. */
        if (failed("reset", llm_session_reset(session), NULL)) goto end;
        if (failed("embedding", llm_session_embedding(session, ids, count, LLM_POOLING_MEAN, 1, NULL,
                                                      text == 2 ? first : vector, width, NULL, &error), &error)) goto end;
        if (failed("reset", llm_session_reset(session), NULL)) goto end;
        if (failed("score", llm_session_score(session, ids, count, scores, 0, NULL, NULL, NULL, NULL, NULL, NULL, &scored,
                                              &error), &error)) goto end;
        for (i = 0; i < width; i++) dot += (double)first[i] * (text == 2 ? first : vector)[i];
        for (i = 1; i < scored; i++) nats -= scores[i]; /* the first token follows nothing */
        printf("%.4f  %.3f  %s\n", dot, exp(nats / (double)(scored - 1)), argv[text]);
    }
    done = 1;
end: /* any order is right */
    free(first), free(vector);
    llm_session_free(session), llm_tokenizer_free(tokenizer), llm_model_free(model), llm_runtime_free(runtime);
    return done ? 0 : 1;
}

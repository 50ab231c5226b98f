/* What the programs beside it expect, and how many times they were wrong. */
#ifndef EXPECT_H
#define EXPECT_H
#include <stdio.h>
#include <llm.h>

static int failures;
#define EXPECT(call, expected) expect(#call, (long)(call), (long)(expected), __LINE__)
#define TRUE(condition) expect(#condition, (condition) ? 1 : 0, 1, __LINE__)

static void expect(const char *what, long got, long expected, int line) {
    if (got == expected) return;
    failures++;
    fprintf(stderr, "line %d: %s is %ld (%s), expected %ld\n", line, what, got, llm_status_name((llm_status)got), expected);
}

#endif

/* Blocks of work on several threads, for _batch_norm.c. */
#ifndef TFBIG_BATCH_NORM_THREADS_H
#define TFBIG_BATCH_NORM_THREADS_H

#include <stdint.h>

/* Calls work(given, block) once for each block from 0 to count - 1, in any order, on at most `num_threads` threads, of
which the caller's is one, and returns after the last. */
void for_each_block(int num_threads, int64_t count, void (*work)(const void *given, int64_t block), const void *given);

#endif

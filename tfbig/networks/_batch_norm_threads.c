/* One team of helpers for the whole process, and not one for each thread that calls, as OpenMP makes them: TensorFlow
calls from as many threads as there are cores, and teams of as many would be the square of it.

Who finds the team taken works alone: the others' cores are busy then. A helper that does not come in time is not waited
for.
*/
#include "_batch_norm_threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Shares of blocks that a thread takes in a loop, if all are as fast. */
#define SHARES_OF_THREAD 4

typedef struct {
    void (*work)(const void *given, int64_t block);
    const void *given;
    int64_t count, share;
    atomic_int_fast64_t next; /* the first block that nobody has taken */
} Loop;

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER; /* held through a loop */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  /* of all below */
static pthread_cond_t has_begun = PTHREAD_COND_INITIALIZER, has_ended = PTHREAD_COND_INITIALIZER;
static Loop *loop;
static int num_helpers, num_wanted, num_inside; /* that are there; that may still come to the loop; that are in it */

static void take_shares(Loop *of) {
    int64_t first;
    while ((first = atomic_fetch_add(&of->next, of->share)) < of->count)
        for (int64_t block = first; block < first + of->share && block < of->count; block++)
            of->work(of->given, block);
}

static void *help(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (num_wanted == 0) pthread_cond_wait(&has_begun, &lock);
        num_wanted--;
        num_inside++;
        Loop *joined = loop;
        pthread_mutex_unlock(&lock);
        take_shares(joined);
        pthread_mutex_lock(&lock);
        if (--num_inside == 0) pthread_cond_signal(&has_ended);
    }
    return unused;
}

/* A child of a fork has none of its parent's threads. */
static void begin_anew(void) {
    taken = lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    has_begun = has_ended = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    num_helpers = num_wanted = num_inside = 0;
}

/* Fewer if the system gives no more. */
static void have_helpers(int count) {
    static bool knows_forks;
    knows_forks = knows_forks || pthread_atfork(NULL, NULL, begin_anew) == 0;
    pthread_attr_t attributes;
    if (num_helpers >= count || !knows_forks || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (num_helpers < count && pthread_create(&thread, &attributes, help, NULL) == 0) num_helpers++;
    pthread_attr_destroy(&attributes);
}

static void take_shares_with(int count, Loop *made) {
    pthread_mutex_lock(&lock);
    have_helpers(count);
    loop = made;
    num_wanted = count < num_helpers ? count : num_helpers;
    for (int i = 0; i < num_wanted; i++) pthread_cond_signal(&has_begun);
    pthread_mutex_unlock(&lock);
    take_shares(made);
    pthread_mutex_lock(&lock);
    num_wanted = 0;
    while (num_inside > 0) pthread_cond_wait(&has_ended, &lock);
    pthread_mutex_unlock(&lock);
}

void for_each_block(int num_threads, int64_t count, void (*work)(const void *given, int64_t block), const void *given) {
    if (num_threads > count) num_threads = (int)count;
    const bool has_team = num_threads > 1 && pthread_mutex_trylock(&taken) == 0;
    const int64_t shares = has_team ? (int64_t)num_threads * SHARES_OF_THREAD : 1;
    Loop made = {.work = work, .given = given, .count = count, .share = (count + shares - 1) / shares};
    if (has_team) {
        take_shares_with(num_threads - 1, &made);
        pthread_mutex_unlock(&taken);
    } else {
        take_shares(&made);
    }
}

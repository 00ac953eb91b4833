/* Batch normalisation joined with the sum and the activation after it, so that a number is read once a pass in place of
once an operation:

    result = cut((x - mean) / sqrt(variance + epsilon) * scale + offset + residual)

of rows (N, C), the pixels of all images. `cut` is a ReLU, one with a ceiling, or nothing. Without a residual the
gradient works out the result again; the pass costs the same, and nothing has to be kept. The gradient is that of Ioffe
and Szegedy 2015 (arXiv 1502.03167), section 3.

Sums over rows are taken in float32 within a block of rows, and over blocks in float64; blocks are the same whatever the
number of threads, and so is what comes out.
*/
#include "_batch_norm.h"
#include "_batch_norm_numbers.h"
#include "_batch_norm_threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__gnu_linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* As many as a core's nearer caches hold, and no more rows than float32 can add. */
#define NUMBERS_OF_BLOCK 65536
#define MOST_ROWS_OF_BLOCK 128
#define ROWS_OF_SHIFT 8

/* Calls a function with constants in place of the three flags, and thereby has a loop compiled for each. */
#define SPECIALISED(function, is_half, has_second, has_result, ...)                                                 \
    do {                                                                                                            \
        const int flags = ((is_half) ? 4 : 0) | ((has_second) ? 2 : 0) | ((has_result) ? 1 : 0);                    \
        if (flags == 0) function(__VA_ARGS__, false, false, false);                                                 \
        if (flags == 1) function(__VA_ARGS__, false, false, true);                                                  \
        if (flags == 2) function(__VA_ARGS__, false, true, false);                                                  \
        if (flags == 3) function(__VA_ARGS__, false, true, true);                                                   \
        if (flags == 4) function(__VA_ARGS__, true, false, false);                                                  \
        if (flags == 5) function(__VA_ARGS__, true, false, true);                                                   \
        if (flags == 6) function(__VA_ARGS__, true, true, false);                                                   \
        if (flags == 7) function(__VA_ARGS__, true, true, true);                                                    \
    } while (0)

/* What is no number stays so. */
INLINE float cut(float value, float low, float high) {
    const float raised = value < low ? low : value;
    return raised > high ? high : raised;
}

/* ---- blocks of rows ---- */

typedef struct {
    int64_t first, last; /* rows, without the last */
} Block;

static int64_t rows_of_block(const Norm *norm) {
    const int64_t rows = NUMBERS_OF_BLOCK / norm->num_channels;
    return rows < 1 ? 1 : rows > MOST_ROWS_OF_BLOCK ? MOST_ROWS_OF_BLOCK : rows;
}

static int64_t num_blocks(const Norm *norm) {
    const int64_t rows = rows_of_block(norm);
    return (norm->num_rows + rows - 1) / rows;
}

static Block block_of(const Norm *norm, int64_t number) {
    const int64_t rows = rows_of_block(norm), first = number * rows, last = first + rows;
    return (Block){first, last < norm->num_rows ? last : norm->num_rows};
}

/* Fewer than there may be where so little is to be done that waking the others takes longer. */
static void on_threads(const Norm *norm, void (*work)(const void *given, int64_t block), const void *given) {
    const int64_t most = 1 + norm->num_rows * norm->num_channels / NUMBERS_OF_BLOCK;
    for_each_block(norm->num_threads < most ? norm->num_threads : (int)most, num_blocks(norm), work, given);
}

/* Two sums a channel: of each block in `partial` (blocks, 2, C), and `total` (2, C). */
typedef struct {
    float *partial;
    double *total;
} Sums;

static bool make_sums(const Norm *norm, Sums *sums) {
    const size_t width = 2 * (size_t)norm->num_channels;
    /* From the beginning of a line of the cache, of which a vector else takes two. */
    const size_t bytes = ((size_t)num_blocks(norm) * width * sizeof *sums->partial / 64 + 1) * 64;
    sums->partial = aligned_alloc(64, bytes);
    if (sums->partial) memset(sums->partial, 0, bytes);
    sums->total = calloc(width, sizeof *sums->total);
    return sums->partial && sums->total;
}

static float *partial_sums(const Norm *norm, const Sums *sums, int64_t block) {
    return sums->partial + 2 * block * norm->num_channels;
}

static void add_up(const Norm *norm, Sums *sums) {
    const int64_t width = 2 * norm->num_channels, count = num_blocks(norm);
    for (int64_t b = 0; b < count; b++) {
        const float *partial = partial_sums(norm, sums, b);
        for (int64_t c = 0; c < width; c++) sums->total[c] += partial[c];
    }
}

static void free_sums(Sums *sums) {
    free(sums->partial);
    free(sums->total);
}

/* ---- mean and variance ---- */

INLINE void add_moments(
    const void *x, Block block, int64_t width, const float *shift, float *restrict sum, float *restrict square,
    bool is_half) {
    for (int64_t row = block.first; row < block.last; row++)
        for (int64_t c = 0; c < width; c++) {
            const float from_shift = get(x, row * width + c, is_half) - shift[c];
            sum[c] += from_shift;
            square[c] += from_shift * from_shift;
        }
}

FOR_EACH_PROCESSOR
static void moments_of_block(const Norm *norm, const void *x, Block block, const float *shift, float *sums) {
    if (norm->is_half)
        add_moments(x, block, norm->num_channels, shift, sums, sums + norm->num_channels, true);
    else
        add_moments(x, block, norm->num_channels, shift, sums, sums + norm->num_channels, false);
}

typedef struct {
    const Norm *norm;
    const void *x;
    const float *shift;
    const Sums *sums;
} Moments;

static void moments_at(const void *given, int64_t b) {
    const Moments *m = given;
    moments_of_block(m->norm, m->x, block_of(m->norm, b), m->shift, partial_sums(m->norm, m->sums, b));
}

/* The mean of a few rows, from which squares lose nothing of what is small beside it. Of one row alone, an outlier in
it would take its place. */
static void add_shift(const Norm *norm, const void *x, float *shift) {
    const int64_t width = norm->num_channels, rows = norm->num_rows;
    const int64_t count = rows < ROWS_OF_SHIFT ? rows : ROWS_OF_SHIFT;
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < width; c++)
            shift[c] += get(x, i * (rows / count) * width + c, norm->is_half) / (float)count;
}

bool find_moments(const Norm *norm, const void *x, float *mean, float *variance) {
    const int64_t width = norm->num_channels;
    Sums sums;
    float *shift = calloc((size_t)width, sizeof *shift);
    const bool fits = make_sums(norm, &sums) && shift;
    if (fits) {
        add_shift(norm, x, shift);
        on_threads(norm, moments_at, &(Moments){norm, x, shift, &sums});
        add_up(norm, &sums);
        for (int64_t c = 0; c < width; c++) {
            const double from_shift = sums.total[c] / (double)norm->num_rows;
            const double square = sums.total[width + c] / (double)norm->num_rows - from_shift * from_shift;
            mean[c] = (float)(shift[c] + from_shift);
            variance[c] = (float)(square < 0 ? 0 : square);
        }
    }
    free_sums(&sums);
    free(shift);
    return fits;
}

/* ---- result ---- */

/* (C,): what a channel is multiplied by. */
static float *make_slopes(const Norm *norm, Channels channels) {
    float *slope = malloc((size_t)norm->num_channels * sizeof *slope);
    for (int64_t c = 0; slope && c < norm->num_channels; c++)
        slope[c] = channels.scale[c] / sqrtf(channels.variance[c] + norm->epsilon);
    return slope;
}

typedef struct {
    const Norm *norm;
    Channels channels;
    const float *slope;
    const void *x, *residual;
    void *result;
} Normalising;

INLINE void normalise_rows(const Normalising *given, Block block, bool is_half, bool has_residual) {
    /* Copies, which nothing that is written can change. */
    const Normalising g = *given;
    const Norm n = *g.norm;
    for (int64_t row = block.first; row < block.last; row++) {
        const int64_t start = row * n.num_channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < n.num_channels; c++) {
            float value = (get(g.x, start + c, is_half) - g.channels.mean[c]) * g.slope[c] + g.channels.offset[c];
            if (has_residual) value += get(g.residual, start + c, is_half);
            put(g.result, start + c, cut(value, n.low, n.high), is_half);
        }
    }
}

FOR_EACH_PROCESSOR
static void normalise_block(const Normalising *given, int64_t b) {
    const Block block = block_of(given->norm, b);
    if (given->norm->is_half && given->residual)
        normalise_rows(given, block, true, true);
    else if (given->norm->is_half)
        normalise_rows(given, block, true, false);
    else if (given->residual)
        normalise_rows(given, block, false, true);
    else
        normalise_rows(given, block, false, false);
}

static void normalise_at(const void *given, int64_t b) { normalise_block(given, b); }

bool normalise(const Norm *norm, Channels channels, const void *x, const void *residual, void *result) {
    float *slope = make_slopes(norm, channels);
    if (!slope) return false;
    on_threads(norm, normalise_at, &(Normalising){norm, channels, slope, x, residual, result});
    free(slope);
    return true;
}

/* ---- gradient ---- */

typedef struct {
    const Norm *norm;
    const Sums *sums;
    const void *upstreams[MOST_UPSTREAMS], *x, *result;
    void *of_x, *of_residual;
    Channels channels;
    const float *slope;
    float *average, *along; /* (C,), from the first pass for the second: means of the gradient, and of it times x */
} Passes;

/* What comes through the activation: where the result lies between its bounds. */
INLINE float through(
    const Norm *norm, const Passes *p, int64_t at, int64_t c, float x, bool is_half, bool has_second, bool has_result) {
    float upstream = get(p->upstreams[0], at, is_half);
    if (has_second) upstream += get(p->upstreams[1], at, is_half);
    const float result = has_result ? get(p->result, at, is_half)
                                    : (x - p->channels.mean[c]) * p->slope[c] + p->channels.offset[c];
    return (result > norm->low) & (result < norm->high) ? upstream : 0;
}

INLINE void sum_rows(
    const Passes *passes, Block block, float *restrict sum, float *restrict along, bool is_half, bool has_second,
    bool has_result) {
    /* Copies, which nothing that is written can change. */
    const Passes p = *passes;
    const Norm n = *p.norm;
    for (int64_t row = block.first; row < block.last; row++) {
        const int64_t start = row * n.num_channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < n.num_channels; c++) {
            const float x = get(p.x, start + c, is_half);
            const float upstream = through(&n, &p, start + c, c, x, is_half, has_second, has_result);
            if (has_result) put(p.of_residual, start + c, upstream, is_half);
            sum[c] += upstream;
            along[c] += upstream * (x - p.channels.mean[c]);
        }
    }
}

FOR_EACH_PROCESSOR
static void sum_block(const Passes *p, int64_t b) {
    float *sum = partial_sums(p->norm, p->sums, b), *along = sum + p->norm->num_channels;
    const Block block = block_of(p->norm, b);
    SPECIALISED(sum_rows, p->norm->is_half, p->upstreams[1], p->result, p, block, sum, along);
}

INLINE void gradient_of_rows(
    const Passes *passes, Block block, bool is_half, bool has_second, bool has_result) {
    const Passes p = *passes;
    const Norm n = *p.norm;
    for (int64_t row = block.first; row < block.last; row++) {
        const int64_t start = row * n.num_channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < n.num_channels; c++) {
            const float x = get(p.x, start + c, is_half);
            const float upstream = has_result ? get(p.of_residual, start + c, is_half)
                                              : through(&n, &p, start + c, c, x, is_half, has_second, false);
            const float rest = upstream - p.average[c] - (x - p.channels.mean[c]) * p.along[c];
            put(p.of_x, start + c, p.slope[c] * rest, is_half);
        }
    }
}

FOR_EACH_PROCESSOR
static void gradient_of_block(const Passes *p, int64_t b) {
    const Block block = block_of(p->norm, b);
    SPECIALISED(gradient_of_rows, p->norm->is_half, p->upstreams[1], p->result, p, block);
}

static void sum_at(const void *given, int64_t b) { sum_block(given, b); }
static void gradient_at(const void *given, int64_t b) { gradient_of_block(given, b); }

bool differentiate(
    const Norm *norm, Channels channels, const void *const upstreams[MOST_UPSTREAMS], const void *x,
    const void *result, void *of_x, void *of_residual, float *of_scale, float *of_offset) {
    const int64_t width = norm->num_channels;
    Sums sums;
    float *slope = make_slopes(norm, channels), *means = malloc(2 * (size_t)width * sizeof *means);
    const bool fits = make_sums(norm, &sums) && slope && means;
    if (fits) {
        const Passes p = {.norm = norm, .sums = &sums, .upstreams = {upstreams[0], upstreams[1]}, .x = x,
                          .result = result, .of_x = of_x, .of_residual = of_residual, .channels = channels,
                          .slope = slope, .average = means, .along = means + width};
        on_threads(norm, sum_at, &p);
        add_up(norm, &sums);
        for (int64_t c = 0; c < width; c++) {
            const double variance = (double)channels.variance[c] + norm->epsilon;
            of_offset[c] = (float)sums.total[c];
            /* Of no rows there is no variance, and nothing comes to the scale. */
            of_scale[c] = norm->num_rows ? (float)(sums.total[width + c] / sqrt(variance)) : 0;
            p.average[c] = (float)(sums.total[c] / (double)norm->num_rows);
            p.along[c] = (float)(sums.total[width + c] / variance / (double)norm->num_rows);
        }
        on_threads(norm, gradient_at, &p);
    }
    free_sums(&sums);
    free(slope);
    free(means);
    return fits;
}

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
#define INLINE static inline __attribute__((always_inline))

/* As many as a core's nearer caches hold, and no more rows than float32 can add. */
#define NUMBERS_OF_BLOCK 65536
#define MOST_ROWS_OF_BLOCK 128

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

/* ---- numbers ---- */

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest, half to even. */
INLINE uint16_t bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0u);
}

INLINE float get(const void *numbers, int64_t at, bool is_half) {
    return is_half ? float_of((uint32_t)((const uint16_t *)numbers)[at] << 16) : ((const float *)numbers)[at];
}

INLINE void put(void *numbers, int64_t at, float value, bool is_half) {
    if (is_half)
        ((uint16_t *)numbers)[at] = bfloat16_of(value);
    else
        ((float *)numbers)[at] = value;
}

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

/* Two sums a channel: of each block in `partial` (blocks, 2, C), and `total` (2, C). */
typedef struct {
    float *partial;
    double *total;
} Sums;

static bool make_sums(const Norm *norm, Sums *sums) {
    const size_t width = 2 * (size_t)norm->num_channels;
    sums->partial = calloc((size_t)num_blocks(norm) * width + 1, sizeof *sums->partial);
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

bool find_moments(const Norm *norm, const void *x, float *mean, float *variance) {
    const int64_t width = norm->num_channels, count = num_blocks(norm);
    Sums sums;
    /* From the first row: squares about zero would lose what is small beside the mean. */
    float *shift = calloc((size_t)width, sizeof *shift);
    const bool fits = make_sums(norm, &sums) && shift;
    if (fits) {
        for (int64_t c = 0; norm->num_rows && c < width; c++) shift[c] = get(x, c, norm->is_half);
#pragma omp parallel for num_threads(norm->num_threads) if (norm->num_threads > 1)
        for (int64_t b = 0; b < count; b++)
            moments_of_block(norm, x, block_of(norm, b), shift, partial_sums(norm, &sums, b));
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

INLINE void normalise_rows(
    const Norm *norm, Channels channels, const float *slope, Block block, const void *x, const void *residual,
    void *result, bool is_half, bool has_residual) {
    const int64_t width = norm->num_channels;
    const float low = norm->low, high = norm->high;
    const float *mean = channels.mean, *offset = channels.offset;
    for (int64_t row = block.first; row < block.last; row++) {
        const int64_t start = row * width;
#pragma GCC ivdep
        for (int64_t c = 0; c < width; c++) {
            float value = (get(x, start + c, is_half) - mean[c]) * slope[c] + offset[c];
            if (has_residual) value += get(residual, start + c, is_half);
            put(result, start + c, cut(value, low, high), is_half);
        }
    }
}

FOR_EACH_PROCESSOR
static void normalise_block(
    const Norm *norm, Channels channels, const float *slope, Block block, const void *x, const void *residual,
    void *result) {
    if (norm->is_half && residual)
        normalise_rows(norm, channels, slope, block, x, residual, result, true, true);
    else if (norm->is_half)
        normalise_rows(norm, channels, slope, block, x, residual, result, true, false);
    else if (residual)
        normalise_rows(norm, channels, slope, block, x, residual, result, false, true);
    else
        normalise_rows(norm, channels, slope, block, x, residual, result, false, false);
}

bool normalise(const Norm *norm, Channels channels, const void *x, const void *residual, void *result) {
    float *slope = make_slopes(norm, channels);
    if (!slope) return false;
    const int64_t count = num_blocks(norm);
#pragma omp parallel for num_threads(norm->num_threads) if (norm->num_threads > 1)
    for (int64_t b = 0; b < count; b++)
        normalise_block(norm, channels, slope, block_of(norm, b), x, residual, result);
    free(slope);
    return true;
}

/* ---- gradient ---- */

typedef struct {
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
    const Norm *norm, const Passes *passes, Block block, float *restrict sum, float *restrict along, bool is_half,
    bool has_second, bool has_result) {
    /* Copies, which nothing that is written can change. */
    const Norm n = *norm;
    const Passes p = *passes;
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
static void sum_block(const Norm *norm, const Passes *p, Block block, float *sums) {
    SPECIALISED(
        sum_rows, norm->is_half, p->upstreams[1], p->result, norm, p, block, sums, sums + norm->num_channels);
}

INLINE void gradient_of_rows(
    const Norm *norm, const Passes *passes, Block block, bool is_half, bool has_second, bool has_result) {
    const Norm n = *norm;
    const Passes p = *passes;
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
static void gradient_of_block(const Norm *norm, const Passes *p, Block block) {
    SPECIALISED(gradient_of_rows, norm->is_half, p->upstreams[1], p->result, norm, p, block);
}

bool differentiate(
    const Norm *norm, Channels channels, const void *const upstreams[MOST_UPSTREAMS], const void *x,
    const void *result, void *of_x, void *of_residual, float *of_scale, float *of_offset) {
    const int64_t width = norm->num_channels, count = num_blocks(norm);
    Sums sums;
    float *slope = make_slopes(norm, channels), *means = malloc(2 * (size_t)width * sizeof *means);
    const bool fits = make_sums(norm, &sums) && slope && means;
    if (fits) {
        const Passes p = {
            {upstreams[0], upstreams[1]}, x, result, of_x, of_residual, channels, slope, means, means + width};
#pragma omp parallel for num_threads(norm->num_threads) if (norm->num_threads > 1)
        for (int64_t b = 0; b < count; b++) sum_block(norm, &p, block_of(norm, b), partial_sums(norm, &sums, b));
        add_up(norm, &sums);
        for (int64_t c = 0; c < width; c++) {
            const double variance = (double)channels.variance[c] + norm->epsilon;
            of_offset[c] = (float)sums.total[c];
            of_scale[c] = (float)(sums.total[width + c] / sqrt(variance));
            p.average[c] = (float)(sums.total[c] / (double)norm->num_rows);
            p.along[c] = (float)(sums.total[width + c] / variance / (double)norm->num_rows);
        }
#pragma omp parallel for num_threads(norm->num_threads) if (norm->num_threads > 1)
        for (int64_t b = 0; b < count; b++) gradient_of_block(norm, &p, block_of(norm, b));
    }
    free_sums(&sums);
    free(slope);
    free(means);
    return fits;
}

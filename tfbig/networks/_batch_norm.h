/* Batch normalisation joined with the sum and the activation after it; what is computed is said in _batch_norm.c. */
#ifndef TFBIG_BATCH_NORM_H
#define TFBIG_BATCH_NORM_H

#include <stdbool.h>
#include <stdint.h>

#define MOST_UPSTREAMS 2

typedef struct {
    int64_t num_rows, num_channels; /* N pixels of all images, of C >= 1 numbers each */
    bool is_half;                   /* the numbers are bfloat16, otherwise float32 */
    float epsilon;                  /* added to variances */
    float low, high;                /* what results are cut to; infinite where there is no activation */
    int num_threads;
} Norm;

/* (C,) each: the batch's statistics, and the layer's weights. */
typedef struct {
    const float *mean, *variance, *scale, *offset;
} Channels;

/* All tensors are (N, C). `residual`, `result` and the second of `upstreams` are NULL where there is none. A result may
lie where the sum's residual does, and a gradient where any of the tensors it is made from does. Each function returns
false where there is no memory for what it keeps meanwhile. */

bool find_moments(const Norm *norm, const void *x, float *mean, float *variance);

bool normalise(const Norm *norm, Channels channels, const void *x, const void *residual, void *result);

/* With the result that was, `of_residual` is what comes through the activation. */
bool differentiate(
    const Norm *norm, Channels channels, const void *const upstreams[MOST_UPSTREAMS], const void *x,
    const void *result, void *of_x, void *of_residual, float *of_scale, float *of_offset);

#endif

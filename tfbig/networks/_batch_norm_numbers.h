/* Numbers of float32 and bfloat16, read and written as float32. */
#ifndef TFBIG_BATCH_NORM_NUMBERS_H
#define TFBIG_BATCH_NORM_NUMBERS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

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

#endif

/*
 * The counter's arithmetic. Whatever changes here changes in tests/xtf/model
 * too. All of it is modulo 2^64.
 */

#ifndef COUNTER_ARITH_H
#define COUNTER_ARITH_H

#include <stdint.h>

#define WORDS 512 /* of 8 bytes a page */

/* SplitMix64's step from one state to one output. */
static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* page_key is of a page that was last written at a count; 0 is the start. */
static inline uint64_t page_key(uint64_t page, uint64_t count)
{
    return mix(mix(page) ^ count);
}

static inline uint64_t page_word(uint64_t key, uint64_t i)
{
    return mix(key + i);
}

/* Digests depend on the order: words of a page, pages of the memory. */
static inline uint64_t digest_add(uint64_t digest, uint64_t x)
{
    return ((digest << 9 | digest >> 55) ^ x) * 0xff51afd7ed558ccd;
}

static inline uint64_t first_sum(uint64_t seed) { return mix(seed); }

static inline uint64_t seal_of(uint64_t count, uint64_t sum)
{
    return mix(sum ^ mix(count));
}

/* The step from count to count+1 checks two pages and writes one of them. */
struct pick {
    uint64_t change, look;
};

static inline struct pick pick_of(uint64_t count, uint64_t sum, uint64_t npages)
{
    uint64_t r = mix(sum + count);

    return (struct pick){ (uint32_t)r % npages, (r >> 32) % npages };
}

/* count is the one after the step; a and b are the digests it found. */
static inline uint64_t sum_add(uint64_t sum, uint64_t count, uint64_t a, uint64_t b)
{
    return mix(mix(mix(sum ^ count) ^ a) ^ b);
}

#endif

/* Time, in nanoseconds, from the shared info and the TSC. */

#ifndef XTF_CLOCK_H
#define XTF_CLOCK_H

#include <stdint.h>

/* clock_now is Xen's system time: the host's, so it jumps on a restore. */
uint64_t clock_now(void);

/* clock_wall is what the host takes for the time since 1970. */
uint64_t clock_wall(void);

#endif

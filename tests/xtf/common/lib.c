#include <xtf/lib.h>

void *memcpy(void *dst, const void *src, size_t n)
{
    void *ret = dst;

    asm volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
    return ret;
}

void *memset(void *dst, int c, size_t n)
{
    void *ret = dst;

    asm volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(c) : "memory");
    return ret;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;

    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return (unsigned char)*a - (unsigned char)*b;
}

struct out {
    char *buf;
    size_t size, len;
};

static void put(struct out *o, char c)
{
    if (o->len + 1 < o->size)
        o->buf[o->len++] = c;
}

static void put_number(struct out *o, unsigned long n, unsigned base,
                       char pad, unsigned width)
{
    char digits[20];
    unsigned len = 0;

    do {
        digits[len++] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n);
    for (; width > len; width--)
        put(o, pad);
    while (len)
        put(o, digits[--len]);
}

size_t vformat(char *buf, size_t size, const char *fmt, va_list ap)
{
    struct out o = { buf, size, 0 };

    for (; *fmt; fmt++) {
        bool wide = false;
        char pad = ' ';
        unsigned width = 0;
        unsigned long n;
        long d;

        if (*fmt != '%') {
            put(&o, *fmt);
            continue;
        }
        fmt++;
        if (*fmt == '0')
            pad = *fmt++;
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + (*fmt - '0');
        for (; *fmt == 'l'; fmt++)
            wide = true;

        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++)
                put(&o, *s);
            break;
        case 'c':
            put(&o, va_arg(ap, int));
            break;
        case 'd':
            d = wide ? va_arg(ap, long) : va_arg(ap, int);
            if (d < 0)
                put(&o, '-');
            put_number(&o, d < 0 ? -(unsigned long)d : (unsigned long)d, 10, pad, width);
            break;
        case 'u':
        case 'x':
            n = wide ? va_arg(ap, unsigned long) : va_arg(ap, unsigned);
            put_number(&o, n, *fmt == 'x' ? 16 : 10, pad, width);
            break;
        default:
            put(&o, *fmt);
            break;
        }
    }
    if (size)
        buf[o.len] = 0;
    return o.len;
}

size_t format(char *buf, size_t size, const char *fmt, ...)
{
    va_list ap;
    size_t len;

    va_start(ap, fmt);
    len = vformat(buf, size, fmt, ap);
    va_end(ap);
    return len;
}

/* The PV console. Before it is connected, text goes to the debug port. */

#ifndef XTF_CONSOLE_H
#define XTF_CONSOLE_H

void console_connect(void);

/* printk does not wait for a console that nobody reads: it drops the rest. */
void printk(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* console_flush waits, a little, until the host has read everything. */
void console_flush(void);

/* console_emergency writes to the debug port alone, where Xen logs it. */
void console_emergency(const char *s);

#endif

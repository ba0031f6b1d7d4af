/* What the toolstack asks of the guest: control/shutdown. */

#ifndef XTF_CONTROL_H
#define XTF_CONTROL_H

/* Watch bits from this one on are the test's own. */
#define WATCH_TEST 1

enum request {
    REQUEST_NONE,
    REQUEST_SUSPEND,
    REQUEST_POWEROFF,
    REQUEST_REBOOT,
};

/* control_init says what the guest can do, and watches. */
void control_init(void);

/* control_take acknowledges and returns what is asked for. */
enum request control_take(void);

/*
 * control_suspend stands still until the domain runs on. It returns 1 if this
 * is the same domain, because the suspend was cancelled (a checkpoint does
 * that), and 0 if it is a new one that was restored; then everything is
 * connected again, but the test's own watches are gone.
 */
int control_suspend(void);

#endif

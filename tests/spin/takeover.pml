/*
 * The takeover of one domain: its protector on host A, the receiver on host B, and an arbiter that gives the domain to
 * the first one that asks. docs/model.md says which code each rule is of, and what is left out.
 *
 * Checked: what the world hears (never from two lives, never from a state that is lost), that nobody waits for ever for
 * what can't come, and that one fault costs neither the domain nor the answer to who runs it.
 *
 * BREAK (0: nothing) leaves one rule out: each such model has to fail. FAULTS is how many faults there are at most.
 */
#ifndef BREAK
#define BREAK 0
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#define EPOCHS 3 /* checkpoints after which the domain is silent */

mtype:word = { DATA, DESTROY, HANDOVER, ACK, DESTROYED, RUNNING };
mtype:role = { NONE, REPLICA, RUNS, NOANSWER };
mtype:side = { NOBODY, A, B };

/* The session's connection: words may be lost with its end, and each side notices that by itself. */
bool conn = true;
chan ab = [2] of { mtype:word, byte };
chan ba = [2] of { mtype:word, byte };

/* What fails. */
bool link = true;   /* the network between the hosts */
bool aUp = true, bUp = true;
bool killed;        /* A's protector, which has a successor */
byte faults;        /* so far; a lost answer of the arbiter is one */

mtype:side arbiter = NOBODY;

/* Records that survive their process. */
bool exposed = true, handed, yielded;

/* The truth. */
bool asks;          /* the copy at A waits for an operator's word: B won in a switch-over, and lost its power */
bool stopped;       /* an operator asked for the end of the protection */
byte told;          /* the newest epoch whose output A let out */
bool free;          /* A lets everything out: protection has ended, its domain runs on */
bool aGone;         /* A's copy of the domain was destroyed */
byte whole = 1;     /* the newest checkpoint that B holds */
bool bRuns;
bool bGone;         /* the replica was destroyed, or never runs */
bool bAsks;         /* a claim of B is under way */
bool bWon;

#define LETS_OUT(e) assert(!bRuns && !aGone && aUp); told = e
#define FREES       assert(!bRuns && !aGone); free = true
#define TAKES_OVER  assert(!free && told <= whole); bRuns = true

/* A claim's answer may be lost, and be asked for again. */
inline claim(who, won, heard) {
	atomic {
		if
		:: arbiter == NOBODY -> arbiter = who
		:: else
		fi;
		won = (arbiter == who);
		if
		:: heard = true
		:: faults < FAULTS -> faults++; heard = false
		fi
	}
}

/* The backup is asked who owns the domain. One that is not asking the arbiter gives up its replica. */
inline owner(answer) {
	atomic {
		if
		:: !link || !bUp -> answer = NOANSWER
		:: link && bUp ->
			if
			:: bRuns -> answer = RUNS
			:: !bRuns && bGone -> answer = NONE
			:: !bRuns && !bGone && (bAsks || bWon) -> answer = REPLICA
			:: !bRuns && !bGone && !bAsks && !bWon -> bGone = true; conn = false; answer = NONE
			fi
		fi
	}
}

proctype Primary(bool successor) {
	byte e, taken = 1;   /* the newest checkpoint that was sent */
	byte acked = 1;
	bool won, heard;
	mtype:role answer;

	if
	:: successor && yielded -> goto yields
	:: successor && !yielded && !exposed -> goto alone
	:: successor && !yielded && exposed -> goto recovering
	:: !successor
	fi;

protects:
	do
	:: killed || !aUp -> goto dead
	/* One checkpoint is in flight at a time. */
	:: atomic { taken == acked && taken < EPOCHS && conn && link && aUp && !killed -> taken++; ab!DATA(taken) }
	:: atomic { ba?ACK(e) ->
		acked = e;
#if BREAK == 1
		LETS_OUT(e)
#else
		/* Right before the release: no later word, and the connection is heard. */
		if
		:: conn && link && empty(ba) -> LETS_OUT(e)
		:: !conn || !link || nempty(ba)
		fi
#endif
	   }
#if BREAK == 2
	:: taken > told -> LETS_OUT(taken)
#endif
	:: ba?DESTROYED(_) -> goto alone
	:: ba?RUNNING(_) -> goto yields
	/* The backup is silent, or the connection ended. A backup that stood still (a fault) counts too. */
	:: empty(ba) && (!conn || !link || !bUp) -> goto arbitrates
	:: atomic { empty(ba) && conn && faults < FAULTS -> faults++; goto arbitrates }
	/* An operator's words. */
	:: atomic { conn && link && aUp && !killed -> stopped = true; ab!DESTROY(0); goto ending }
	:: atomic { told == taken && taken == EPOCHS && conn && link && aUp && !killed ->
		/* A switch-over: the final checkpoint is acknowledged, its output has left. */
#if BREAK != 6
		handed = true;
#endif
		ab!HANDOVER(acked);
		goto handing
	   }
	od;

ending:
	do
	:: killed || !aUp -> goto dead
	:: ba?DESTROYED(_) -> goto alone
	:: ba?RUNNING(_) -> goto yields
	:: ba?ACK(e)
	:: empty(ba) && (!conn || !link || !bUp) -> goto arbitrates
	:: atomic { empty(ba) && conn && faults < FAULTS -> faults++; goto arbitrates }
	od;

handing:
	do
	:: killed || !aUp -> goto dead
	:: ba?RUNNING(_) -> goto yields
	:: ba?DESTROYED(_) -> goto alone
	:: ba?ACK(e)
	:: empty(ba) && (!conn || !link || !bUp) -> goto arbitrates
	:: atomic { empty(ba) && conn && faults < FAULTS -> faults++; goto arbitrates }
	od;

recovering:
	if
	:: killed || !aUp -> goto dead
	:: else
	fi;
#if BREAK == 5
	goto alone;
#endif
	owner(answer);
	if
	:: answer == RUNS -> goto yields
	:: answer == NONE -> goto alone
	:: else
	fi;

arbitrates:
	if
	:: killed || !aUp -> goto dead
	:: else
	fi;
	/* A backup that was told to run the domain is asked first. */
	if
	:: handed ->
		owner(answer);
		if
		:: answer == RUNS -> goto yields
		:: answer == NONE -> goto alone
		:: else
		fi
	:: else
	fi;
	claim(A, won, heard);
	if
#if BREAK == 3
	:: !heard -> goto alone
#else
	:: !heard -> goto waits
#endif
	:: heard && won -> goto alone
#if BREAK == 7
	:: heard && !won -> goto yields
#else
	:: heard && !won && !handed -> goto yields
	:: heard && !won && handed -> goto waits /* only the backup knows whether it runs there */
#endif
	fi;

waits:
	/* The domain is paused. A word that still comes is heard; else it is asked again, when that may be of use. */
	if
	:: killed || !aUp -> goto dead
	:: ba?DESTROYED(_) -> goto alone
	:: ba?RUNNING(_) -> goto yields
	:: ba?ACK(_) -> goto waits
	:: arbiter == NOBODY || arbiter == A -> goto arbitrates
	:: link && bUp && (bRuns || bGone) -> goto arbitrates
	:: !handed -> goto arbitrates
	/* The host that won lost its power: an operator's word. */
	:: arbiter == B && handed && !bUp -> asks = true; goto lost
	fi;

alone:
	atomic {
		/* The record first, then the output. */
		if
		:: killed || !aUp -> goto dead
		:: else -> exposed = false; conn = false
		fi
	};
	if
	:: killed || !aUp -> goto dead
	:: atomic { !killed && aUp -> FREES }
	fi;
	goto lost;

yields:
	atomic {
		if
		:: killed || !aUp -> goto dead
		:: else -> yielded = true
		fi
	};
	if
	:: killed || !aUp -> goto dead
	:: atomic { !killed && aUp -> aGone = true; conn = false }
	fi;
	goto lost;

dead:
	atomic {
		conn = false;
		if
		:: aUp && killed -> killed = false; run Primary(true)
		:: else
		fi
	};
lost:
	skip
}

proctype Backup() {
	byte e;
	bool won, heard;

receives:
	do
	:: bGone || !bUp -> goto over
	:: ab?DATA(e) -> atomic {
		whole = e;
		if
		:: conn && link -> ba!ACK(e)
		:: else
		fi }
	:: atomic { ab?DESTROY(_) -> bGone = true;
		if
		:: conn && link -> ba!DESTROYED(0)
		:: else
		fi }
	:: ab?HANDOVER(e) -> goto claims
	/* The primary is silent, or the connection ended. A primary that stood still (a fault) counts too: the end of the
	   connection is what it hears of that. */
	:: atomic { empty(ab) && !bGone && (!conn || !link || !aUp || killed) -> conn = false; goto claims }
	:: atomic { empty(ab) && !bGone && conn && faults < FAULTS -> faults++; conn = false; goto claims }
	od;

claims:
	atomic {
		if
		:: bGone || !bUp -> goto over
		:: else -> bAsks = true
		fi
	};
	claim(B, won, heard);
	atomic {
		bAsks = false;
		if
		:: bGone || !bUp -> goto over
		:: !bGone && bUp ->
			if
#if BREAK == 4
			:: bWon = true
#else
			:: heard && won -> bWon = true
			:: heard && !won -> bGone = true; goto over
			:: !heard -> goto retries
#endif
			fi
		fi
	};
	if
	:: atomic { bUp -> TAKES_OVER }
	:: !bUp -> goto over
	fi;
	if
	:: atomic { conn && link && nfull(ba) -> ba!RUNNING(0) }
	:: !conn || !link || full(ba)
	fi;
	goto over;

retries:
	if
	:: bGone || !bUp -> goto over
	:: else -> goto claims
	fi;

over:
	skip
}

/* Faults, at any moment. */
proctype Fate() {
	do
	:: atomic { faults < FAULTS && link -> faults++; link = false; conn = false }
	:: atomic { faults < FAULTS && aUp -> faults++; aUp = false; conn = false }
	:: atomic { faults < FAULTS && bUp -> faults++; bUp = false; conn = false }
	:: atomic { faults < FAULTS && aUp && !killed && !free && !aGone -> faults++; killed = true; conn = false }
	/* The receiver dies, and its replica with it; its successor says so. One that takes the domain over goes on. */
	:: atomic { faults < FAULTS && bUp && !bWon && !bGone -> faults++; bGone = true; conn = false }
	:: atomic { !link -> link = true } /* it is healed */
	:: link -> break
	od
}

init {
	atomic { run Primary(false); run Backup(); run Fate() };
	/* All have come to their ends. */
	_nr_pr == 1;
	/* Two hosts without power, or a host and the copy on the other, are two faults. */
	assert(faults > 1 || free || bRuns || stopped || asks);
	assert(!(free && bRuns));
	assert(!(bRuns && bUp && aUp) || aGone)
}

// javac --release 11 -g:none -d . Turns.java
package org.pytorch.serve.wlm;

import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.WeakHashMap;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Which workers of a model may take a batch; {@code turns} in server/patches.py says why.
 *
 * <p>A worker has a turn from when it waits for the first request of a batch until that batch is
 * answered. Only so many have one at once, but a turn does not count any more once its batch has
 * been computed for longer than the others wait: so a long batch, or a dead worker, holds nobody up.
 */
final class Turns {
    /** One processor is left to the frontend, the front door and the kernel. */
    private static final int AT_ONCE =
            Math.max(1, Runtime.getRuntime().availableProcessors() - 1);

    private static final long PATIENCE_MS = 3;

    /** By the lock of each {@code Model}, which its workers took before there were turns. */
    private static final Map<ReentrantLock, Turns> TURNS =
            Collections.synchronizedMap(new WeakHashMap<>());

    /** When each worker that has a turn began to compute, in ns; null before that. */
    private final Map<Thread, Long> began = new HashMap<>();

    /** In place of {@code lock.lockInterruptibly()}. */
    static void take(ReentrantLock lock) throws InterruptedException {
        Turns turns = TURNS.computeIfAbsent(lock, key -> new Turns());
        synchronized (turns) {
            turns.began.remove(Thread.currentThread());
            // Whoever has just answered is here first, and its caches are warm; nobody is notified.
            while (turns.count() >= AT_ONCE) {
                turns.wait(PATIENCE_MS);
            }
            turns.began.put(Thread.currentThread(), null);
        }
    }

    /** The first request of a batch is there. */
    static void begin(ReentrantLock lock) {
        Turns turns = TURNS.get(lock);
        synchronized (turns) {
            turns.began.put(Thread.currentThread(), System.nanoTime());
        }
    }

    /**
     * The worker ends while it waits for a batch; in place of {@code lock.isHeldByCurrentThread()}.
     *
     * @return false, as nobody holds the lock
     */
    static boolean leave(ReentrantLock lock) {
        Turns turns = TURNS.get(lock);
        synchronized (turns) {
            turns.began.remove(Thread.currentThread());
        }
        return false;
    }

    private int count() {
        long now = System.nanoTime();
        int count = 0;
        for (Long start : began.values()) {
            if (start == null || now - start < PATIENCE_MS * 1_000_000) {
                count++;
            }
        }
        return count;
    }
}

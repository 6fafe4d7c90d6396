package minutehand.join;

import java.io.IOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.core.memory.DataInputDeserializer;
import org.apache.flink.core.memory.DataOutputSerializer;

/**
 * The state of one impression_id as bytes, written and read by hand: they are most of the job's state.
 *
 * <pre>
 * waiting:  1 | shown ms (8) | closed tasks, a bit each (8) | the impression's part of an example
 * held:     2 | count (2)    | events, one after another
 * </pre>
 */
final class State {
    static final int BODY = 17;
    private static final byte WAITING = 1;
    private static final byte HELD = 2;
    private static final VarHandle LONG = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.BIG_ENDIAN);

    private State() {}

    static boolean isWaiting(byte[] state) {
        return state != null && state[0] == WAITING;
    }

    static byte[] waiting(long shownMs, byte[] body) {
        byte[] state = new byte[BODY + body.length];
        state[0] = WAITING;
        LONG.set(state, 1, shownMs);
        System.arraycopy(body, 0, state, BODY, body.length);
        return state;
    }

    static long shownMs(byte[] waiting) {
        return (long) LONG.get(waiting, 1);
    }

    static long closedTasks(byte[] waiting) {
        return (long) LONG.get(waiting, 9);
    }

    static void setClosedTasks(byte[] waiting, long bits) {
        LONG.set(waiting, 9, bits);
    }

    static int heldCount(byte[] state) {
        return state == null || state[0] != HELD ? 0 : (state[1] & 0xff) << 8 | state[2] & 0xff;
    }

    /** Adds an action at the end of `held` (null: none yet). */
    static byte[] hold(byte[] held, Event action) throws IOException {
        DataOutputSerializer out = new DataOutputSerializer(256);
        out.writeByte(HELD);
        out.writeShort(heldCount(held) + 1);
        if (held != null) {
            out.write(held, 3, held.length - 3);
        }
        action.write(out);
        return out.getCopyOfBuffer();
    }

    /** The held actions, in the order in which they came. */
    static List<Event> held(byte[] state) throws IOException {
        int count = heldCount(state);
        List<Event> actions = new ArrayList<>(count);
        if (count > 0) {
            DataInputDeserializer in = new DataInputDeserializer(state, 3, state.length - 3);
            for (int i = 0; i < count; i++) {
                Event action = new Event();
                action.read(in);
                actions.add(action);
            }
        }
        return actions;
    }
}

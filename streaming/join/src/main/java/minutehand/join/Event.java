package minutehand.join;

import java.io.IOException;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import org.apache.flink.types.CopyableValue;

/**
 * One message of a topic. It is a Flink Value, so that Flink serializes it by the methods below, without reflection.
 *
 * <p>`key` is the impression_id, empty in a heartbeat or bad message. `body` depends on the kind: an impression's part
 * of an example, an action's value, or the dead record of a bad message. `message` holds the bytes from Kafka, which
 * late and dead records repeat.
 */
public final class Event implements CopyableValue<Event> {
    static final byte IMPRESSION = 0;
    static final byte ACTION = 1;
    static final byte HEARTBEAT = 2;
    static final byte BAD = 3;
    private static final byte[] NONE = new byte[0];

    byte kind;
    /** True: from the topic `actions`; false: from `impressions`. */
    boolean fromActions;
    int partition;
    long offset;
    /** Kafka's timestamp. */
    long writtenMs;
    /** Event time; in a heartbeat its time. */
    long tsMs;
    /** The action's place in the declared tasks. */
    int task;
    String key = "";
    byte[] body = NONE;
    byte[] message = NONE;

    /** Makes this a bad message; `record` is its dead record. */
    void bad(byte[] record) {
        kind = BAD;
        body = record;
        message = NONE;
    }

    public String key() {
        return key;
    }

    @Override
    public void write(DataOutputView out) throws IOException {
        out.writeByte(kind);
        out.writeBoolean(fromActions);
        out.writeInt(partition);
        out.writeLong(offset);
        out.writeLong(writtenMs);
        out.writeLong(tsMs);
        out.writeInt(task);
        writeBytes(out, Bytes.utf8(key));
        writeBytes(out, body);
        writeBytes(out, message);
    }

    @Override
    public void read(DataInputView in) throws IOException {
        kind = in.readByte();
        fromActions = in.readBoolean();
        partition = in.readInt();
        offset = in.readLong();
        writtenMs = in.readLong();
        tsMs = in.readLong();
        task = in.readInt();
        key = new String(readBytes(in), java.nio.charset.StandardCharsets.UTF_8);
        body = readBytes(in);
        message = readBytes(in);
    }

    private static void writeBytes(DataOutputView out, byte[] bytes) throws IOException {
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static byte[] readBytes(DataInputView in) throws IOException {
        byte[] bytes = new byte[in.readInt()];
        in.readFully(bytes);
        return bytes;
    }

    @Override
    public int getBinaryLength() {
        return -1;
    }

    @Override
    public void copyTo(Event target) {
        target.kind = kind;
        target.fromActions = fromActions;
        target.partition = partition;
        target.offset = offset;
        target.writtenMs = writtenMs;
        target.tsMs = tsMs;
        target.task = task;
        target.key = key;
        target.body = body;
        target.message = message;
    }

    @Override
    public Event copy() {
        Event copy = new Event();
        copyTo(copy);
        return copy;
    }

    @Override
    public void copy(DataInputView source, DataOutputView target) throws IOException {
        Event event = new Event();
        event.read(source);
        event.write(target);
    }
}

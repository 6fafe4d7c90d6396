package minutehand.join;

import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import org.apache.kafka.clients.producer.ProducerRecord;

/** Writes the join's records: examples, progress, dead and late ones (docs/example.md, "Out"). Not for two threads. */
final class Records {
    private static final int MESSAGE_BYTES = 64 * 1024;

    private final Settings settings;
    private final byte[] positiveHead = head("positive");
    private final byte[] negativeHead = head("negative");
    private final byte[] pi;
    private final byte[][] positiveTails;
    private final byte[] noValues;
    private final Bytes buffer = new Bytes();

    Records(Settings settings) {
        this.settings = settings;
        pi = Bytes.utf8(",\"pi\":" + settings.pi);
        positiveTails = new byte[settings.tasks.size()][];
        for (int task = 0; task < positiveTails.length; task++) {
            buffer.clear();
            positiveTails[task] = list(list(buffer, "labels", 1L << task), "weights", 1L << task).toArray();
        }
        noValues = values(-1, null).toArray();
    }

    private static byte[] head(String kind) {
        return Bytes.utf8("{\"v\":" + Contract.VERSION + ",\"kind\":\"" + kind + "\",");
    }

    /** `value` is the action's, as it was written. */
    ProducerRecord<byte[], byte[]> positive(byte[] id, byte[] state, int bodyFrom, int task, byte[] value, long eventMs, long writtenMs) {
        byte[] values = values(task, value).toArray();
        byte[] record = head(positiveHead, state, bodyFrom, eventMs, writtenMs).put(positiveTails[task]).put(values).toArray();
        return new ProducerRecord<>(settings.examples, id, record);
    }

    /** `open` has a bit for each task that had no action. */
    ProducerRecord<byte[], byte[]> negative(byte[] id, byte[] state, int bodyFrom, long open, long eventMs, long writtenMs) {
        head(negativeHead, state, bodyFrom, eventMs, writtenMs);
        list(list(buffer, "labels", 0), "weights", open).put(noValues);
        return new ProducerRecord<>(settings.examples, id, buffer.toArray());
    }

    ProducerRecord<byte[], byte[]> progress(int partition, long time, int subtask, int subtasks) {
        buffer.clear();
        buffer.ascii("{\"heartbeat_ms\":").number(time).ascii(",\"subtask\":").number(subtask).ascii(",\"subtasks\":").number(subtasks).put('}');
        return new ProducerRecord<>(settings.examples, partition, null, buffer.toArray());
    }

    /** The value of a message's dead or late record: the message, where it came from, and the reason. */
    byte[] explained(String kind, String reason, Event event, byte[] message) {
        byte[] bytes = message == null ? new byte[0] : message;
        byte[] begin = bytes.length > MESSAGE_BYTES ? Arrays.copyOf(bytes, MESSAGE_BYTES) : bytes;
        buffer.clear();
        buffer.ascii("{\"kind\":").quoted(kind).ascii(",\"reason\":").quoted(reason).ascii(",\"topic\":").quoted(origin(event));
        buffer.ascii(",\"partition\":").number(event.partition).ascii(",\"offset\":").number(event.offset);
        buffer.ascii(",\"size\":").number(bytes.length).ascii(",\"sha256\":\"").ascii(sha256(bytes));
        buffer.ascii("\",\"message\":\"").put(Base64.getEncoder().encode(begin)).ascii("\"}");
        return buffer.toArray();
    }

    ProducerRecord<byte[], byte[]> dead(Event event, byte[] explained) {
        return new ProducerRecord<>(origin(event) + ".dead", key(event), explained);
    }

    ProducerRecord<byte[], byte[]> late(Event event, String reason) {
        return new ProducerRecord<>(origin(event) + ".late", key(event), explained("late", reason, event, event.message));
    }

    private String origin(Event event) {
        return event.fromActions ? settings.actions : settings.impressions;
    }

    private static byte[] key(Event event) {
        return event.key.isEmpty() ? null : Bytes.utf8(event.key);
    }

    private Bytes head(byte[] kind, byte[] state, int bodyFrom, long eventMs, long writtenMs) {
        buffer.clear();
        buffer.put(kind).put(state, bodyFrom, state.length - bodyFrom);
        return buffer.ascii(",\"event_ms\":").number(eventMs).ascii(",\"written_ms\":").number(writtenMs).put(pi);
    }

    /** The end of an example: the value of `task`, null for all others. */
    private Bytes values(int task, byte[] value) {
        buffer.clear();
        buffer.ascii(",\"values\":[");
        for (int k = 0; k < settings.tasks.size(); k++) {
            if (k > 0) {
                buffer.put(',');
            }
            if (k == task) {
                buffer.put(value);
            } else {
                buffer.ascii("null");
            }
        }
        return buffer.ascii("]}");
    }

    private Bytes list(Bytes target, String name, long bits) {
        target.put(',').quoted(name).ascii(":[");
        for (int task = 0; task < settings.tasks.size(); task++) {
            if (task > 0) {
                target.put(',');
            }
            target.put((bits >>> task & 1) == 1 ? '1' : '0');
        }
        return target.put(']');
    }

    static String sha256(byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }
}

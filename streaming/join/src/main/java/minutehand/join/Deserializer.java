package minutehand.join;

import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/**
 * Makes events of the messages of both topics. It runs inside the source, where Flink knows each record's partition.
 *
 * <p>It never throws. An exception would stop the job, and stop it at the same message again after each restart.
 */
final class Deserializer implements KafkaRecordDeserializationSchema<Event> {
    private final Settings settings;
    private transient Parser parser;
    private transient Records records;

    Deserializer(Settings settings) {
        this.settings = settings;
    }

    @Override
    public void open(DeserializationSchema.InitializationContext context) {
        parser = new Parser(settings);
        records = new Records(settings);
    }

    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Event> out) {
        out.collect(event(record));
    }

    Event event(ConsumerRecord<byte[], byte[]> record) {
        Event event = new Event();
        event.fromActions = record.topic().equals(settings.actions);
        event.partition = record.partition();
        event.offset = record.offset();
        event.writtenMs = record.timestamp();
        byte[] message = record.value();
        try {
            parser.parse(message, event);
            event.message = event.kind == Event.HEARTBEAT ? event.message : message;
        } catch (Bad e) {
            event.bad(records.explained(e.kind, e.getMessage(), event, message));
        } catch (RuntimeException e) {
            event.bad(records.explained("json", "cannot be read: " + e, event, message));
        }
        return event;
    }

    @Override
    public TypeInformation<Event> getProducedType() {
        return TypeInformation.of(Event.class);
    }
}

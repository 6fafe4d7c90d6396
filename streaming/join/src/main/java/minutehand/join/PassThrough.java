package minutehand.join;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * The job with which benchmarks/joiner.py compares the join. It has the same sources, parsing, keys, checkpoints and
 * transactions. It writes each event as it came, without state and without a timer.
 */
public final class PassThrough {
    private PassThrough() {}

    public static void main(String[] args) throws Exception {
        JoinJob.run(args, "minutehand.join.PassThrough SETTINGS.json\n\nThe join's settings; writes every event to examples as it came.",
                (env, settings, topics) -> Cluster.events(env, settings)
                        .process(new Edge(settings), TypeInformation.of(Event.class)).name("edge").uid("edge")
                        .keyBy(Event::key, Types.STRING)
                        .process(new AsItCame(settings.examples), JoinJob.RECORD).name("pass").uid("pass"));
    }

    private static final class AsItCame extends KeyedProcessFunction<String, Event, ProducerRecord<byte[], byte[]>> {
        private final String topic;

        AsItCame(String topic) {
            this.topic = topic;
        }

        @Override
        public void processElement(Event event, Context context, Collector<ProducerRecord<byte[], byte[]>> out) {
            out.collect(new ProducerRecord<>(topic, Bytes.utf8(event.key), event.kind == Event.BAD ? event.body : event.message));
        }
    }
}

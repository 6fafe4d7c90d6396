package minutehand.join;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetIdentifier;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacetProvider;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.sink.TransactionNamingStrategy;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.kafka.clients.consumer.OffsetResetStrategy;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/** Sets up Flink, the Kafka source and the Kafka sink, for the join and the benchmark's pass-through job. */
final class Cluster {
    private Cluster() {}

    /** The configuration of a job in its own process: its page, RocksDB, its checkpoints, and where it resumes. */
    static Configuration configuration(Settings settings, Folder folder, Optional<Path> resume) {
        Configuration c = new Configuration();
        Map.ofEntries(
                Map.entry("pipeline.name", "minutehand join of " + settings.source),
                Map.entry("pipeline.object-reuse", "true"),
                Map.entry("pipeline.max-parallelism", "" + JoinJob.MAX_PARALLELISM),
                Map.entry("parallelism.default", "" + settings.parallelism),
                Map.entry("rest.address", settings.restAddress),
                Map.entry("rest.bind-address", settings.restAddress),
                Map.entry("rest.port", "" + settings.restPort),
                Map.entry("rest.bind-port", "" + settings.restPort),
                // Flink's own servers listen on all addresses if nobody says otherwise, and any web page may ask its REST.
                Map.entry("jobmanager.bind-host", settings.restAddress),
                Map.entry("taskmanager.bind-host", settings.restAddress),
                Map.entry("web.access-control-allow-origin", "http://" + settings.restAddress + ":" + settings.restPort),
                Map.entry("web.cancel.enable", "false"),
                // Visitors of the page may look; they may not submit code.
                Map.entry("web.submit.enable", "false"),
                Map.entry("execution.checkpointing.interval", settings.checkpointMs + " ms"),
                Map.entry("execution.checkpointing.mode", "EXACTLY_ONCE"),
                Map.entry("execution.checkpointing.dir", uri(folder.checkpoints())),
                Map.entry("execution.checkpointing.incremental", "true"),
                Map.entry("execution.checkpointing.num-retained", "3"),
                Map.entry("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION"),
                // A broker that is away fails checkpoints; the job waits for it instead of dying.
                Map.entry("execution.checkpointing.tolerable-failed-checkpoints", "1000000"),
                Map.entry("execution.state-recovery.claim-mode", "NO_CLAIM"),
                // Ten failures in a row end the process, and its supervisor shows why.
                Map.entry("restart-strategy.type", "exponential-delay"),
                Map.entry("restart-strategy.exponential-delay.initial-backoff", "1 s"),
                Map.entry("restart-strategy.exponential-delay.max-backoff", "10 s"),
                Map.entry("restart-strategy.exponential-delay.reset-backoff-threshold", "1 min"),
                Map.entry("restart-strategy.exponential-delay.attempts-before-reset-backoff", "10"),
                Map.entry("state.backend.type", "rocksdb"),
                Map.entry("state.backend.rocksdb.localdir", folder.nativeTmp().toString()),
                Map.entry("io.tmp.dirs", folder.nativeTmp().toString()),
                // Most lookups are of impressions that are not there yet.
                Map.entry("state.backend.rocksdb.use-bloom-filter", "true"),
                Map.entry("state.backend.rocksdb.options-factory", RocksOptions.class.getName()),
                // So many timers of each key group stay in memory. Each further batch of them costs a seek on the disk.
                Map.entry("state.backend.rocksdb.timer-service.cache-size", "1024"),
                Map.entry("taskmanager.memory.managed.size", "256m"),
                // The longest time that a record waits in a network buffer. It adds to the age of the served model.
                Map.entry("execution.buffer-timeout.interval", "10 ms")
        ).forEach(c::setString);
        resume.ifPresent(path -> c.setString("execution.state-recovery.path", uri(path)));
        return c;
    }

    /** A path as Flink reads it back: with its scheme and nothing escaped. Java's own URI would name another folder for a space. */
    private static String uri(Path path) {
        return "file:" + path;
    }

    /** Both topics as one stream of events. Each partition has its event time. */
    static SingleOutputStreamOperator<Event> events(StreamExecutionEnvironment env, Settings settings) {
        KafkaSource<Event> source = KafkaSource.<Event>builder()
                .setBootstrapServers(settings.bootstrap)
                .setTopics(settings.impressions, settings.actions)
                .setGroupId("minutehand-" + settings.examples)
                .setStartingOffsets(new FromTheBeginning())
                .setDeserializer(new Deserializer(settings))
                .setProperty("isolation.level", "read_committed")
                // The broker gathers events for an answer. Records wait for the next checkpoint anyway.
                .setProperty("fetch.min.bytes", "1048576")
                .setProperty("fetch.max.wait.ms", "" + Math.max(10, settings.checkpointMs / 10))
                // The checkpoint has the positions; the broker needs none.
                .setProperty("commit.offsets.on.checkpoint", "false")
                // New partitions are read well before their records could be late.
                .setProperty("partition.discovery.interval.ms", "10000")
                .build();
        return env.fromSource(source, WatermarkStrategy.forGenerator(context -> new PartitionTime(settings)), "events").uid("events");
    }

    /** Writes examples, dead and late records in one transaction per checkpoint: each exactly once. */
    static KafkaSink<ProducerRecord<byte[], byte[]>> sink(Settings settings) {
        Properties producer = new Properties();
        producer.put("transaction.timeout.ms", "" + settings.transactionTimeoutMs);
        producer.put("compression.type", "lz4");
        producer.put("batch.size", "131072");
        producer.put("linger.ms", "5");
        return KafkaSink.<ProducerRecord<byte[], byte[]>>builder()
                .setBootstrapServers(settings.bootstrap)
                .setKafkaProducerConfig(producer)
                .setRecordSerializer(new AsItIs(settings))
                .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
                // Reuses transactional ids. The other strategy makes one each checkpoint, kept for a week.
                .setTransactionNamingStrategy(TransactionNamingStrategy.POOLING)
                .setTransactionalIdPrefix("minutehand-" + settings.examples)
                .build();
    }

    private static final class AsItIs implements KafkaRecordSerializationSchema<ProducerRecord<byte[], byte[]>>, KafkaDatasetFacetProvider {
        private final List<String> topics;

        AsItIs(Settings settings) {
            topics = settings.outputs();
        }

        /** The topics in which a former process may have left open transactions: the sink asks the broker for those. */
        @Override
        public Optional<KafkaDatasetFacet> getKafkaDatasetFacet() {
            return Optional.of(new DefaultKafkaDatasetFacet(DefaultKafkaDatasetIdentifier.ofTopics(topics)));
        }

        @Override
        public ProducerRecord<byte[], byte[]> serialize(ProducerRecord<byte[], byte[]> record, KafkaSinkContext context, Long timestamp) {
            return record;
        }
    }

    /** A first start reads everything. The job stops if a resumed position is gone: it would lose events otherwise. */
    private static final class FromTheBeginning implements OffsetsInitializer {
        @Override
        public Map<TopicPartition, Long> getPartitionOffsets(java.util.Collection<TopicPartition> partitions, PartitionOffsetsRetriever retriever) {
            return OffsetsInitializer.earliest().getPartitionOffsets(partitions, retriever);
        }

        @Override
        public OffsetResetStrategy getAutoOffsetResetStrategy() {
            return OffsetResetStrategy.NONE;
        }
    }
}

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

/** Flink and both ends of Kafka as this project sets them up; the join and the benchmark's pass-through job share it. */
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
                // Whoever reaches the page may look, not submit code.
                Map.entry("web.submit.enable", "false"),
                Map.entry("execution.checkpointing.interval", settings.checkpointMs + " ms"),
                Map.entry("execution.checkpointing.mode", "EXACTLY_ONCE"),
                Map.entry("execution.checkpointing.dir", folder.checkpoints().toUri().toString()),
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
                Map.entry("state.backend.rocksdb.localdir", folder.tmp().toString()),
                Map.entry("io.tmp.dirs", folder.tmp().toString()),
                // Most lookups are of impressions that are not there yet.
                Map.entry("state.backend.rocksdb.use-bloom-filter", "true"),
                Map.entry("state.backend.rocksdb.options-factory", RocksOptions.class.getName()),
                // The nearest timers of each key group are kept in memory; below it each batch of them is a seek.
                Map.entry("state.backend.rocksdb.timer-service.cache-size", "1024"),
                Map.entry("taskmanager.memory.managed.size", "256m"),
                // How long a record may wait for company between two operators: a part of freshness.
                Map.entry("execution.buffer-timeout.interval", "10 ms")
        ).forEach(c::setString);
        resume.ifPresent(path -> c.setString("execution.state-recovery.path", path.toUri().toString()));
        return c;
    }

    /** Both topics as one stream of events, with event time from heartbeats, a partition each. */
    static SingleOutputStreamOperator<Event> events(StreamExecutionEnvironment env, Settings settings) {
        KafkaSource<Event> source = KafkaSource.<Event>builder()
                .setBootstrapServers(settings.bootstrap)
                .setTopics(settings.impressions, settings.actions)
                .setGroupId("minutehand-" + settings.examples)
                .setStartingOffsets(new FromTheBeginning())
                .setDeserializer(new Deserializer(settings))
                .setProperty("isolation.level", "read_committed")
                // Positions are the checkpoint's; nobody asks the broker for them.
                .setProperty("commit.offsets.on.checkpoint", "false")
                .build();
        long disorder = settings.maxDisorderMs;
        return env.fromSource(source, WatermarkStrategy.forGenerator(context -> new Heartbeats(disorder)), "events").uid("events");
    }

    /** Examples, dead and late records go through one transaction a checkpoint: all of them exactly once. */
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
                // Reuses its transactional ids. The other strategy leaves a new one at the broker each checkpoint, for a week.
                .setTransactionNamingStrategy(TransactionNamingStrategy.POOLING)
                .setTransactionalIdPrefix("minutehand-" + settings.examples)
                .build();
    }

    private static final class AsItIs implements KafkaRecordSerializationSchema<ProducerRecord<byte[], byte[]>>, KafkaDatasetFacetProvider {
        private final List<String> topics;

        AsItIs(Settings settings) {
            topics = settings.outputs();
        }

        /** Where transactions of a former life may be open: the sink asks the broker for those. */
        @Override
        public Optional<KafkaDatasetFacet> getKafkaDatasetFacet() {
            return Optional.of(new DefaultKafkaDatasetFacet(DefaultKafkaDatasetIdentifier.ofTopics(topics)));
        }

        @Override
        public ProducerRecord<byte[], byte[]> serialize(ProducerRecord<byte[], byte[]> record, KafkaSinkContext context, Long timestamp) {
            return record;
        }
    }

    /** A first start reads all there is. A resumed position that is gone stops the job: going on elsewhere would lose events silently. */
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

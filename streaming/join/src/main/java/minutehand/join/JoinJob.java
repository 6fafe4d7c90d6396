package minutehand.join;

import java.nio.file.Path;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.flink.api.common.typeinfo.TypeHint;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The join: impressions and actions in, examples out. It runs in its own process, or on a Flink cluster. */
public final class JoinJob {
    /** The number of key groups too: fixed for the life of a state. */
    static final int MAX_PARALLELISM = 64;
    static final TypeInformation<ProducerRecord<byte[], byte[]>> RECORD = TypeInformation.of(new TypeHint<>() {});
    private static final Logger LOG = LoggerFactory.getLogger(JoinJob.class);
    private static final String HELP = """
            minutehand.join.JoinJob SETTINGS.json

            Joins the topics impressions and actions into examples (docs/example.md). It resumes from the newest completed
            checkpoint in state_dir by itself, or begins at the oldest messages. Settings, with their defaults:
              bootstrap                Kafka, host:port
              source                   the source's name
              declaration              features and tasks, as of streaming.declaration.Declaration.to_json()
              pi (1.0)                 keep rate of negatives, 0 < pi <= 1
              salt ("minutehand")      of the draw
              checkpoint_ms (1000)     readers see records after the checkpoint they belong to
              state_dir                the job's folder
              rest_port (0: any)       Flink's page, on rest_address (127.0.0.1)
              max_disorder_ms (60000)  how far clocks may be apart, and how late a record may come
              lease ("": live, the broker's stamps are the clock)   of the replay that owns the clock
              parallelism (1)          at most the partitions of an input topic
              topics                   {"impressions", "actions", "examples"}: other names than these
              transaction_timeout_ms (900000)   longer than the job is ever down, at most the broker's transaction.max.timeout.ms
            SIGTERM and SIGINT end it cleanly.""";

    private JoinJob() {}

    public static void main(String[] args) throws Exception {
        run(args, HELP, JoinJob::build);
    }

    /** What makes the stream of records that the sink writes. */
    interface Body {
        DataStream<ProducerRecord<byte[], byte[]>> build(StreamExecutionEnvironment env, Settings settings, Topics topics);
    }

    static DataStream<ProducerRecord<byte[], byte[]>> build(StreamExecutionEnvironment env, Settings settings, Topics topics) {
        return Cluster.events(env, settings)
                .process(new Edge(settings), TypeInformation.of(Event.class)).name("edge").uid("edge")
                .keyBy(Event::key, Types.STRING)
                .transform("join", RECORD, new JoinOperator(settings, new Join(settings), topics.partitions().get(settings.examples)))
                .uid("join");
    }

    static void run(String[] args, String help, Body body) throws Exception {
        if (args.length != 1 || args[0].equals("--help")) {
            System.err.println(help);
            System.exit(args.length == 1 ? 0 : 2);
        }
        JobClient client;
        try {
            client = submit(Settings.read(Path.of(args[0])), body);
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage());
            System.exit(2);
            return;
        }
        AtomicBoolean ending = new AtomicBoolean();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> end(client, ending), "end"));
        if (endsByItself(client, ending)) {
            System.exit(1);
        }
        // A cancelled job returns here while the hook still runs; the hook ends the process.
        Thread.currentThread().join();
    }

    /**
     * Waits for the end of the job. True: nobody has asked this process to end.
     * A join has no end of its own, so somebody has stopped it, or it has failed.
     */
    static boolean endsByItself(JobClient client, AtomicBoolean ending) {
        Exception failure = null;
        try {
            client.getJobExecutionResult().get();
        } catch (Exception e) {
            failure = e;
        }
        if (!ending.compareAndSet(false, true)) {
            return false;
        }
        LOG.error(failure == null ? "the job was stopped from outside" : "the job failed for good", failure);
        return true;
    }

    private static JobClient submit(Settings settings, Body body) throws Exception {
        Folder folder = new Folder(settings.stateDir);
        folder.open();
        Topics topics = Topics.ask(settings);
        Optional<Path> resume = folder.newestCheckpoint();
        folder.refuseIfEmptied(resume.isPresent());
        for (String change : folder.claim(new Owner(settings, topics.clusterId(), topics.ids()), resume.isPresent())) {
            LOG.info("{}: {}", settings.source, change);
        }
        if (resume.isPresent()) {
            folder.keepOnly(resume.get());
        }
        LOG.info("{}: resuming from {}", settings.source, resume.map(Path::toString).orElse("nothing, a first start"));
        StreamExecutionEnvironment env =
                StreamExecutionEnvironment.getExecutionEnvironment(Cluster.configuration(settings, folder, resume));
        body.build(env, settings, topics).sinkTo(Cluster.sink(settings)).name("records").uid("records");
        JobClient client = env.executeAsync();
        LOG.info("job {} submitted, page at http://{}:{}", client.getJobID(), settings.restAddress, settings.restPort);
        return client;
    }

    /** On SIGTERM and SIGINT: the newest checkpoint stays. The next start reads again what came after it. */
    private static void end(JobClient client, AtomicBoolean ending) {
        if (!ending.compareAndSet(false, true)) {
            return;
        }
        try {
            client.cancel().get(10, TimeUnit.SECONDS);
            client.getJobExecutionResult().get(10, TimeUnit.SECONDS);
        } catch (Exception e) {
            // A cancelled job has no result, which is reported as an exception.
        }
        LOG.info("ended");
        Runtime.getRuntime().halt(0);
    }
}

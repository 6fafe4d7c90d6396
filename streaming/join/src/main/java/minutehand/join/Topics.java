package minutehand.join;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;

/** The identity and partitions of the job's topics. The broker is asked once, at the start. */
record Topics(String clusterId, Map<String, String> ids, Map<String, Integer> partitions) {
    private static final long TIMEOUT_S = 30;

    static Topics ask(Settings settings) throws Exception {
        Properties properties = new Properties();
        properties.put(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, settings.bootstrap);
        List<String> names = new ArrayList<>(settings.outputs());
        names.addAll(List.of(settings.impressions, settings.actions));
        Map<String, String> ids = new TreeMap<>();
        Map<String, Integer> partitions = new TreeMap<>();
        try (Admin admin = Admin.create(properties)) {
            String cluster = answer(admin.describeCluster().clusterId(), settings);
            for (Map.Entry<String, KafkaFuture<TopicDescription>> one : admin.describeTopics(names).topicNameValues().entrySet()) {
                try {
                    TopicDescription topic = answer(one.getValue(), settings);
                    ids.put(one.getKey(), topic.topicId().toString());
                    partitions.put(one.getKey(), topic.partitions().size());
                } catch (ExecutionException e) {
                    if (e.getCause() instanceof UnknownTopicOrPartitionException) {
                        throw new IllegalArgumentException("setting topics: the broker " + settings.bootstrap + " has no topic '" + one.getKey()
                                + "'; streaming/topics.py makes them");
                    }
                    throw e;
                }
            }
            int least = Math.min(partitions.get(settings.impressions), partitions.get(settings.actions));
            // Event time would never advance in a subtask that reads no partition.
            if (settings.parallelism > least) {
                throw new IllegalArgumentException("setting parallelism is " + settings.parallelism + ": allowed is 1 to " + least
                        + ", the partitions of each input topic");
            }
            return new Topics(cluster, ids, partitions);
        } catch (org.apache.kafka.common.KafkaException e) {
            throw new IllegalArgumentException("setting bootstrap is " + settings.bootstrap + ": " + e.getMessage()
                    + (e.getCause() == null ? "" : ", " + e.getCause().getMessage()));
        }
    }

    private static <T> T answer(KafkaFuture<T> future, Settings settings) throws Exception {
        try {
            return future.get(TIMEOUT_S, TimeUnit.SECONDS);
        } catch (java.util.concurrent.TimeoutException e) {
            throw new IllegalArgumentException("setting bootstrap is " + settings.bootstrap + ": no broker answers there in " + TIMEOUT_S + " s");
        }
    }
}

package minutehand.join;

import org.apache.flink.streaming.api.operators.KeyedProcessOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Runs the join and reports its progress: when event time has moved to W and the examples of all windows that end by
 * then are written, it writes one record to each partition of `examples`. It is an operator, because a function does
 * not see watermarks.
 */
final class JoinOperator extends KeyedProcessOperator<String, Event, ProducerRecord<byte[], byte[]>> {
    private final Settings settings;
    private final Join join;
    private final int partitions;
    private transient Records records;

    JoinOperator(Settings settings, Join join, int partitions) {
        super(join);
        this.settings = settings;
        this.join = join;
        this.partitions = partitions;
    }

    @Override
    public void open() throws Exception {
        super.open();
        records = new Records(settings);
    }

    @Override
    public void processWatermark(Watermark mark) throws Exception {
        // This closes windows, and returns before the floor moves: their examples are judged by the time before.
        super.processWatermark(mark);
        // After a restore, event time may begin below the floor; progress never falls. MAX_VALUE ends a bounded source.
        if (mark.getTimestamp() <= join.time() || mark.getTimestamp() == Long.MAX_VALUE) {
            return;
        }
        join.passed(mark.getTimestamp());
        int subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
        int subtasks = getRuntimeContext().getTaskInfo().getNumberOfParallelSubtasks();
        for (int partition = 0; partition < partitions; partition++) {
            output.collect(new StreamRecord<>(records.progress(partition, mark.getTimestamp(), subtask, subtasks)));
        }
    }
}

package minutehand.join;

import org.apache.flink.streaming.api.operators.KeyedProcessOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Runs the join and tells its progress: when event time has moved to W and every window that this closes is written, one record goes
 * into each partition of `examples`. A function cannot do this, it is not told of watermarks; so it is an operator.
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
        // Windows close in here. It comes back before the floor moves: what closes now is judged by the time before.
        super.processWatermark(mark);
        // After a restore event time may begin behind the floor: progress never falls. The last mark of a bounded source is no time.
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

package minutehand.join;

import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkOutput;

/**
 * The event time of one Kafka partition (docs/example.md, "Event time"). Flink takes the least of all partitions.
 *
 * <p>Live it follows the broker's stamps, of any record. In a replay it follows the heartbeats of the one process that
 * owns the clock. It is behind them by max_disorder_ms + 1.
 */
final class PartitionTime implements WatermarkGenerator<Event> {
    private final boolean live;
    private final long maxDisorderMs;
    private long newest = Long.MIN_VALUE;

    PartitionTime(Settings settings) {
        live = settings.live();
        maxDisorderMs = settings.maxDisorderMs;
    }

    @Override
    public void onEvent(Event event, long kafkaTimestamp, WatermarkOutput output) {
        if (!live && event.kind != Event.HEARTBEAT) {
            return;
        }
        long time = live ? event.writtenMs : event.tsMs;
        if (time > newest) {
            newest = time;
            output.emitWatermark(new Watermark(newest - maxDisorderMs - 1));
        }
    }

    @Override
    public void onPeriodicEmit(WatermarkOutput output) {
        // Emitted at once, in onEvent.
    }
}

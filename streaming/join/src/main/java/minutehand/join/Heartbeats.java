package minutehand.join;

import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkOutput;

/**
 * The event time of one Kafka partition: its newest heartbeat - max_disorder_ms - 1. Only heartbeats move it. Flink
 * takes the least of all partitions.
 */
final class Heartbeats implements WatermarkGenerator<Event> {
    private final long maxDisorderMs;
    private long newest = Long.MIN_VALUE;

    Heartbeats(long maxDisorderMs) {
        this.maxDisorderMs = maxDisorderMs;
    }

    @Override
    public void onEvent(Event event, long kafkaTimestamp, WatermarkOutput output) {
        if (event.kind == Event.HEARTBEAT && event.tsMs > newest) {
            newest = event.tsMs;
            output.emitWatermark(new Watermark(newest - maxDisorderMs - 1));
        }
    }

    @Override
    public void onPeriodicEmit(WatermarkOutput output) {
        // Emitted at once, in onEvent.
    }
}

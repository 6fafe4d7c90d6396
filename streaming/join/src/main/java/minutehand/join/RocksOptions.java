package minutehand.join;

import java.util.Collection;
import org.apache.flink.state.rocksdb.RocksDBOptionsFactory;
import org.rocksdb.ColumnFamilyOptions;
import org.rocksdb.CompressionType;
import org.rocksdb.DBOptions;

/**
 * RocksDB's options for the join's state. Each checkpoint, up to five a second, flushes a small file; each entry is
 * deleted after a window.
 *
 * <p>By default four such files start a compaction of the whole state, each second: half of the join's CPU time. With
 * more files a read checks more bloom filters, and most entries are deleted before a compaction would rewrite them.
 */
public final class RocksOptions implements RocksDBOptionsFactory {
    private static final int FILES_TO_COMPACT = 24;

    @Override
    public DBOptions createDBOptions(DBOptions current, Collection<AutoCloseable> toClose) {
        return current;
    }

    @Override
    public ColumnFamilyOptions createColumnOptions(ColumnFamilyOptions current, Collection<AutoCloseable> toClose) {
        return current.setLevel0FileNumCompactionTrigger(FILES_TO_COMPACT)
                .setLevel0SlowdownWritesTrigger(4 * FILES_TO_COMPACT)
                .setLevel0StopWritesTrigger(6 * FILES_TO_COMPACT)
                .setCompressionType(CompressionType.LZ4_COMPRESSION);
    }
}

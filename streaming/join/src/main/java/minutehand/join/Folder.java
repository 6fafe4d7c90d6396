package minutehand.join;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * The job's folder, state_dir: what stays when its process ends.
 *
 * <pre>
 * LOCK                                     held while a job lives
 * job.json                                 whose state this is: Kafka's cluster and topic ids, the declaration
 * checkpoints/(job id)/chk-(n)/_metadata   exists once the checkpoint is complete; a resume continues n
 * CHECKPOINTED                             there once a checkpoint was complete
 * tmp/                                     RocksDB's working files; emptied at each start
 * </pre>
 */
final class Folder {
    /** References for the life of the process: a lock is released when its channel is collected as garbage. */
    private static final List<FileLock> LOCKS = new ArrayList<>();

    private final Path root;

    Folder(String root) {
        this.root = Path.of(root);
    }

    Path checkpoints() {
        return root.resolve("checkpoints");
    }

    Path tmp() {
        return root.resolve("tmp");
    }

    /** The name of tmp() for RocksDB. Its native code reads an emoji as two halves, so the name of the working directory is left out. */
    Path nativeTmp() {
        Path here = Path.of("").toAbsolutePath(), tmp = tmp().toAbsolutePath();
        return tmp.startsWith(here) ? Path.of("/proc/self/cwd").resolve(here.relativize(tmp)) : tmp;
    }

    /** Takes the folder for this process, until it ends. */
    void open() throws IOException {
        if (nativeTmp().toString().codePoints().anyMatch(c -> c > 0xffff)) {
            throw new IllegalArgumentException("setting state_dir is " + root + ": RocksDB opens no path with such a character (an emoji);"
                    + " allowed is such a folder if the job runs in it");
        }
        try {
            Files.createDirectories(checkpoints());
        } catch (IOException e) {
            throw new IllegalArgumentException("setting state_dir is " + root + ": a folder that can be made and written is needed (" + e + ")");
        }
        FileLock lock = FileChannel.open(root.resolve("LOCK"), StandardOpenOption.CREATE, StandardOpenOption.WRITE).tryLock();
        if (lock == null) {
            throw new IllegalArgumentException("setting state_dir is " + root + ": another join job is running in it");
        }
        delete(tmp());
        Files.createDirectories(tmp());
        LOCKS.add(lock);
    }

    /** The newest completed checkpoint. No older one may be resumed: Kafka has its transactions already. */
    Optional<Path> newestCheckpoint() throws IOException {
        try (Stream<Path> files = Files.find(checkpoints(), 3, (path, attributes) -> path.endsWith("_metadata"))) {
            return files.map(Path::getParent).filter(path -> path.getFileName().toString().startsWith("chk-"))
                    .max(Comparator.comparingLong(Folder::number));
        }
    }

    private static long number(Path checkpoint) {
        return Long.parseLong(checkpoint.getFileName().toString().substring("chk-".length()));
    }

    /** Removes the checkpoints of all jobs but the resumed one. A job refers to no files of others (NO_CLAIM). */
    void keepOnly(Path checkpoint) throws IOException {
        try (Stream<Path> jobs = Files.list(checkpoints())) {
            for (Path job : (Iterable<Path>) jobs::iterator) {
                if (!checkpoint.startsWith(job)) {
                    delete(job);
                }
            }
        }
    }

    /** A checkpoint is complete, so its examples are committed: from now on a start without a checkpoint is refused. */
    void checkpointed() throws IOException {
        if (Files.isDirectory(root)) {
            Files.write(root.resolve("CHECKPOINTED"), new byte[0]);
        }
    }

    /** A job that had checkpoints and has none would write all its examples a second time. */
    void refuseIfEmptied(boolean resuming) {
        if (!resuming && Files.exists(root.resolve("CHECKPOINTED"))) {
            throw new IllegalArgumentException("setting state_dir is " + root + ": its checkpoints are gone, and without one all examples would be"
                    + " written again; allowed is the folder with its checkpoints, or new topics and an empty folder");
        }
    }

    /** Writes whose state this is. A resume is refused, unless `owner` is the one before or has grown from it; returns what was added. */
    List<String> claim(Owner owner, boolean resuming) throws IOException {
        Path file = root.resolve("job.json");
        List<String> added = List.of();
        if (resuming && Files.exists(file)) {
            Owner.Growth growth = owner.since(Files.readString(file));
            if (!growth.refused().isEmpty()) {
                throw new IllegalArgumentException("setting state_dir is " + root + ": it holds the state of another job: " + String.join("; ", growth.refused())
                        + "; allowed is the folder of the same Kafka topics and of a declaration to which only features, and tasks at the end, were added;"
                        + " or an empty folder");
            }
            added = growth.added();
        }
        Path aside = root.resolve("job.json.new");
        Files.writeString(aside, owner.toJson());
        Files.move(aside, file, java.nio.file.StandardCopyOption.ATOMIC_MOVE, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
        return added;
    }

    private static void delete(Path folder) throws IOException {
        if (!Files.exists(folder)) {
            return;
        }
        List<Path> paths;
        try (Stream<Path> files = Files.walk(folder)) {
            paths = files.sorted(Comparator.reverseOrder()).toList();
        } catch (UncheckedIOException e) {
            throw e.getCause();
        }
        for (Path path : paths) {
            Files.deleteIfExists(path);
        }
    }
}

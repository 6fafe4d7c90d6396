package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.reflect.Proxy;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.flink.core.execution.JobClient;
import org.junit.jupiter.api.Test;

/** The end of a job: a join that finishes or fails is an error, one that this process ends is none. */
class JoinJobTest {
    @Test
    void aJobThatFinishesOrFailsEndsTheProcessWithAnError() {
        AtomicBoolean ending = new AtomicBoolean();
        assertTrue(JoinJob.endsByItself(job(CompletableFuture.completedFuture(null)), ending), "it finished");
        assertTrue(ending.get(), "the hook leaves the job alone");
        assertTrue(JoinJob.endsByItself(job(CompletableFuture.failedFuture(new Exception("failed"))), new AtomicBoolean()));
    }

    @Test
    void aJobThatThisProcessEndsIsNoError() {
        assertFalse(JoinJob.endsByItself(job(CompletableFuture.completedFuture(null)), new AtomicBoolean(true)));
        assertFalse(JoinJob.endsByItself(job(CompletableFuture.failedFuture(new Exception("cancelled"))), new AtomicBoolean(true)));
    }

    private static JobClient job(CompletableFuture<?> result) {
        return (JobClient) Proxy.newProxyInstance(
                JobClient.class.getClassLoader(), new Class<?>[] {JobClient.class},
                (proxy, method, arguments) -> method.getName().equals("getJobExecutionResult") ? result : null);
    }
}

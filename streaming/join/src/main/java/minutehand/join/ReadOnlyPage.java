package minutehand.join;

import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.RestOptions;
import org.apache.flink.runtime.io.network.netty.InboundChannelHandlerFactory;
import org.apache.flink.shaded.netty4.io.netty.buffer.Unpooled;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelFutureListener;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelHandler;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelHandlerContext;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelInboundHandlerAdapter;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.DefaultFullHttpResponse;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.FullHttpResponse;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpHeaderNames;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpMethod;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpRequest;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpResponseStatus;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpVersion;
import org.apache.flink.shaded.netty4.io.netty.util.ReferenceCountUtil;

/**
 * Makes Flink's page and REST one to look at only. Whoever could stop the job there would make it begin anew, and a web
 * page of somebody else must not reach it through a browser of this machine. Flink finds this class by its service file.
 */
public final class ReadOnlyPage implements InboundChannelHandlerFactory {
    private static final String EVERY_ADDRESS = "0.0.0.0";

    @Override
    public int priority() {
        return 0;
    }

    @Override
    public Optional<ChannelHandler> createHandler(Configuration configuration, Map<String, String> responseHeaders) {
        return Optional.of(new Guard(configuration.get(RestOptions.ADDRESS)));
    }

    /** Why a request is refused; null if it is not. */
    static String refusal(String method, String host, String address) {
        if (!List.of("GET", "HEAD").contains(method)) {
            return "this page can be looked at only: allowed are GET and HEAD";
        }
        String name = host == null ? "" : host.replaceFirst(":\\d+$", "");
        boolean ours = EVERY_ADDRESS.equals(address) || List.of(String.valueOf(address), "localhost", "127.0.0.1", "[::1]").contains(name);
        return ours ? null : "Host is another machine's: allowed are " + address + " and localhost";
    }

    private static final class Guard extends ChannelInboundHandlerAdapter {
        private final String address;

        Guard(String address) {
            this.address = address;
        }

        @Override
        public void channelRead(ChannelHandlerContext context, Object message) {
            if (message instanceof HttpRequest request) {
                HttpMethod method = request.method();
                String refusal = refusal(method.name(), request.headers().get(HttpHeaderNames.HOST), address);
                if (refusal != null) {
                    ReferenceCountUtil.release(message);
                    FullHttpResponse answer = new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.FORBIDDEN,
                            Unpooled.wrappedBuffer(Bytes.utf8(refusal + "\n")));
                    answer.headers().set(HttpHeaderNames.CONTENT_LENGTH, answer.content().readableBytes());
                    context.writeAndFlush(answer).addListener(ChannelFutureListener.CLOSE);
                    return;
                }
            }
            context.fireChannelRead(message);
        }
    }
}

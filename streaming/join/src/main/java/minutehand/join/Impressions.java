package minutehand.join;

import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;

/**
 * Reads impressions. It writes an impression's part of an example once, in declared order. The join stores these bytes,
 * copies them into each record of the impression, and never parses them again. Not for two threads.
 */
final class Impressions {
    private final Settings settings;
    private final Map<String, Integer> places = new HashMap<>();
    private final byte[][] fallbacks;
    private final byte[][] names;
    private final int[] from;
    private final int[] to;
    private final int[] scoreFrom;
    private final int[] scoreTo;
    private final byte[][] taskNames;
    private final Bytes values = new Bytes();
    private final Bytes body = new Bytes();

    Impressions(Settings settings) {
        this.settings = settings;
        int n = settings.features.size();
        fallbacks = new byte[n][];
        names = new byte[n][];
        from = new int[n];
        to = new int[n];
        for (int i = 0; i < n; i++) {
            places.put(settings.features.get(i).name(), i);
            fallbacks[i] = Bytes.utf8(settings.features.get(i).fallback());
            names[i] = new Bytes().put(i == 0 ? '{' : ',').quoted(settings.features.get(i).name()).put(':').toArray();
        }
        taskNames = new byte[settings.tasks.size()][];
        scoreFrom = new int[taskNames.length];
        scoreTo = new int[taskNames.length];
        for (int i = 0; i < taskNames.length; i++) {
            taskNames[i] = new Bytes().quoted(settings.tasks.get(i)).put(':').toArray();
        }
    }

    /** Fills kind, key, tsMs and body of `event`. */
    void read(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String request = "";
        String lineage = "";
        long ts = -1;
        long user = 0;
        long item = 0;
        long seq = -1;
        int position = 0;
        Set<String> missing = new LinkedHashSet<>(Contract.IMPRESSION_NEEDS);
        values.clear();
        Arrays.fill(to, -1);
        Arrays.fill(scoreTo, -1);
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            missing.remove(name);
            switch (name) {
                case "impression_id" -> id = Values.bounded(json, name, 1, Contract.MAX_KEY_BYTES);
                case "request_id" -> request = Values.bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "user_id" -> user = Values.entity(json, name);
                case "item_id" -> item = Values.entity(json, name);
                case "ts_ms" -> ts = Values.time(json, name);
                case "features" -> features(json);
                case "scores" -> scores(json);
                case "lineage" -> lineage = Values.bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "seq" -> seq = Values.integer(json, name);
                case "position" -> position = Values.position(json);
                case "arm" -> Values.bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "read_ms" -> Values.time(json, name);
                case "heartbeat_ms" -> throw Bad.HEARTBEAT;
                default -> Values.skip(json);
            }
        }
        Values.need(missing);
        event.kind = Event.IMPRESSION;
        event.key = id;
        event.tsMs = ts;
        body.clear();
        body.ascii("\"impression_id\":").quoted(id).ascii(",\"request_id\":").quoted(request);
        body.ascii(",\"user_id\":").number(user).ascii(",\"item_id\":").number(item).ascii(",\"ts_ms\":").number(ts);
        body.ascii(",\"position\":").number(position).ascii(",\"lineage\":").quoted(lineage).ascii(",\"seq\":").number(seq);
        body.ascii(",\"features\":");
        for (int i = 0; i < names.length; i++) {
            body.put(names[i]);
            if (to[i] < 0) {
                body.put(fallbacks[i]);
            } else {
                body.put(values, from[i], to[i]);
            }
        }
        body.ascii(names.length == 0 ? "{},\"scores\":{" : "},\"scores\":{");
        char separator = 0;
        for (int i = 0; i < taskNames.length; i++) {
            if (scoreTo[i] >= 0) {
                if (separator != 0) {
                    body.put(separator);
                }
                separator = ',';
                body.put(taskNames[i]).put(values, scoreFrom[i], scoreTo[i]);
            }
        }
        body.put('}');
        event.body = body.toArray();
    }

    private void features(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw Values.wrong("type", json, "features", "object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            Integer place = places.get(name);
            json.nextToken();
            if (place == null) {
                Values.skip(json);
                continue;
            }
            from[place] = values.size();
            switch (settings.features.get(place).kind()) {
                case ID -> values.number(Values.entity(json, name));
                case IDS -> ids(json, name);
                case NUMBER -> Values.number(json, name, values);
                default -> throw new IllegalStateException(name);
            }
            to[place] = values.size();
        }
    }

    private void ids(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_ARRAY) {
            throw Values.wrong("type", json, name, "array");
        }
        values.put('[');
        int count = 0;
        while (json.nextToken() != JsonToken.END_ARRAY) {
            if (count++ > 0) {
                values.put(',');
            }
            if (count <= Contract.MAX_LIST) {
                values.number(Values.entity(json, name));
            } else {
                Values.skip(json);
            }
        }
        if (count > Contract.MAX_LIST) {
            throw new Bad("length", name + " has " + count + " items, allowed are " + Contract.MAX_LIST);
        }
        values.put(']');
    }

    private void scores(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw Values.wrong("type", json, "scores", "object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            int task = settings.tasks.indexOf(name);
            json.nextToken();
            if (task < 0) {
                Values.skip(json);
                continue;
            }
            scoreFrom[task] = values.size();
            Values.number(json, name, values);
            scoreTo[task] = values.size();
            double score = json.getDoubleValue();
            if (score < 0 || score > 1) {
                throw Values.wrong("range", json, name, "0 to 1");
            }
        }
    }
}

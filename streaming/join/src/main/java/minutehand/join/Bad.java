package minutehand.join;

/** A message breaks the contract: the kind of its fault, and the reason. A stack trace would only cost time. */
final class Bad extends Exception {
    /** Thrown where a message turns out to be a heartbeat, which is then read as one. */
    static final Bad HEARTBEAT = new Bad("heartbeat", "");

    final String kind;

    Bad(String kind, String reason) {
        super(reason, null, false, false);
        this.kind = kind;
    }
}

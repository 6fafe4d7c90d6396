"""The reader on a real broker: no commit passes a dead letter that nobody has, and a position that is gone is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

from common.errors import InputError
from streaming import topics
from streaming.reader import NewPartitions, PositionGone, Reader
from streaming.topics import ACTIONS, DEAD
from tests.support.broker import Broker
from tests.support.wait import until


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """It has the topic of actions, with three records, and no topic of dead letters."""
    with Broker() as running:
        admin = KafkaAdminClient(bootstrap_servers=running.bootstrap)
        admin.create_topics([NewTopic(ACTIONS, topics.PARTITIONS, 1)])
        admin.close()
        producer = KafkaProducer(bootstrap_servers=running.bootstrap)
        for k in range(3):
            producer.send(ACTIONS, b"{broken %d" % k, partition=0)
        producer.close()
        yield running


def letters(broker: Broker) -> list[int]:
    """The offsets of the actions that are in the dead-letter topic."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, consumer_timeout_ms=2000)
    consumer.assign([TopicPartition(DEAD[ACTIONS], p) for p in range(topics.PARTITIONS)])
    consumer.seek_to_beginning()
    offsets = sorted(json.loads(record.value)["offset"] for record in consumer)
    consumer.close()
    return offsets


def bury_all(reader: Reader) -> None:
    """Reads the three records, and buries each."""
    offsets: list[int] = []

    def read() -> bool:
        for (topic, partition), records in reader.poll(200, 100).items():
            for record in records:
                reader.bury(topic, partition, record.offset, record.value, "json", "it is broken")
                offsets.append(record.offset)
        return offsets == [0, 1, 2]

    until(read, "three records")


def test_no_position_passes_a_letter_that_the_broker_has_not_taken(broker: Broker) -> None:
    reader = Reader(broker.bootstrap, [ACTIONS], {})
    bury_all(reader)
    assert reader.dead == 3
    with pytest.raises(KafkaError, match="3 dead letters are not acknowledged"):
        reader.positions()
    topics.create(broker.bootstrap)
    assert reader.positions()[ACTIONS]["offsets"] == {"0": 3, "1": 0}
    assert letters(broker) == [0, 1, 2]
    reader.close()


def test_partitions_that_are_new_are_noticed_and_none_is_taken_away(broker: Broker) -> None:
    topics.create(broker.bootstrap, 2)
    reader = Reader(broker.bootstrap, ["examples"], {})
    reader.positions()
    topics.create(broker.bootstrap, 3)
    with pytest.raises(InputError, match="partitions is 2, but topic .* has 3; allowed is 3 or more"):
        topics.create(broker.bootstrap, 2)

    def refused() -> str:
        reader.poll(100, 10)
        try:
            reader.positions()
        except NewPartitions as e:
            return str(e)
        return ""

    assert "topic examples has 3 partitions, and this process reads 2" in until(refused, "it is noticed", 60)
    reader.close()
    again = Reader(broker.bootstrap, ["examples"], {})
    assert again.partitions("examples") == [0, 1, 2]
    again.close()


def test_the_broker_lacks_a_committed_position(broker: Broker) -> None:
    reader = Reader(broker.bootstrap, [ACTIONS], {})
    begin = reader.positions()
    reader.close()
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    admin.delete_records({TopicPartition(ACTIONS, 0): 2})
    admin.close()
    gone = Reader(broker.bootstrap, [ACTIONS], begin, "the test's", "begin anew")
    text = r"actions partition 0 no longer has offset 0 of the test's positions, .*\(retention\?\): begin anew"
    with pytest.raises(PositionGone, match=text):
        while True:
            gone.poll(200, 100)
    gone.close()


def test_a_broker_that_is_gone_lets_it_bury_and_close(broker: Broker) -> None:
    """The last test of this module: the broker does not come back."""
    reader = Reader(broker.bootstrap, [ACTIONS], {})
    assert reader.lag() >= 0
    broker.process.kill()
    until(lambda: math.isnan(reader.lag()), "a lag that is not known")
    for offset in range(3):
        reader.bury(ACTIONS, 0, offset, b"{broken", "json", "it is broken")
    with pytest.raises(KafkaError, match="3 dead letters are not acknowledged"):
        reader.positions()
    reader.close()

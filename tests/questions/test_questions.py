import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_index.core import PromptTemplate

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.questions import filters
from llama_index_embeddings_adapted.questions.answers import clean, read_questions
from llama_index_embeddings_adapted.questions.prompts import STYLES, PromptConfig, few_shot

PASSAGE = (
    "Riders pay a service fee and a commission on each trip. The commission rose from 18 to 20 "
    "percent in 2021, after insurance costs had gone up in California."
)
GOOD = ["How high is the commission on a trip?", "rider service fee California"]


def candidate(text: str, **more: str | None) -> filters.Candidate:
    return filters.Candidate(text, "d", **{"passage": PASSAGE, **more})


def reason(text: str, **more: str | None) -> str | None:
    return next((f.__name__ for f in filters.TEXT_FILTERS if f(candidate(text, **more))), None)


@pytest.mark.parametrize(
    "answer",
    [
        "{0}\n{1}",
        "1. {0}\n2. {1}",
        "1) {0}\n\n2) {1}\n",
        "(1) {0}\n(2) {1}",
        "- {0}\n* {1}",
        "• {0}\r\n• {1}",
        "**Question 1:** {0}\n**Question 2:** {1}",
        "Q1: {0}\nQ2: {1}",
        "### {0}\n> {1}",
        "١. {0}\n٢. {1}",
        "१. {0}\n२. {1}",
        "1、{0}\n2、{1}",
        "一、{0}\n二、{1}",
        "Pregunta 1: {0}\nPregunta 2: {1}",
        "Frage 1: {0}\nFrage 2: {1}",
        "Вопрос 1: {0}\nВопрос 2: {1}",
        "問題1：{0}\n問題2：{1}",
        '"{0}"\n“{1}”',
        "«{0}»\n「{1}」",
        "*{0}*\n__{1}__",
        "<think>Which questions? Maybe this one?</think>\n{0}\n{1}",
        "```\n{0}\n{1}\n```",
        '["{0}", "{1}"]',
        '```json\n["{0}", "{1}"]\n```',
        '{{"questions": ["{0}", "{1}"]}}',
        '[{{"question": "{0}", "answer": "18"}}, {{"question": "{1}", "answer": "20"}}]',
        'Here they are:\n{{"query_1": "{0}", "query_2": "{1}"}}',
        "\u202b{0}\u202c\n\ufeff{1}\u200b",
    ],
)
def test_two_questions_are_read_whatever_their_wrapping(answer):
    assert read_questions(answer.format(*GOOD), limit=9) == GOOD


ASKED = ["Which bacteria show pollution?", "How fast are samples tested?"]


@pytest.mark.parametrize(
    "answer",
    [
        "Q1: {0}\nA1: Bacteroides\nQ2: {1}\nA2: Within six hours",
        "**Question:** {0}\n\n**Answer:** Some,\nas said\n\n**Question:** {1}\n\n**Answer:** 6",
        "问题1：{0}\n答案1：每周\n问题2：{1}\n答案2：五年",
        "1. {0}\nA) Bacteroides\nB) Fish\nAnswer: A\n2. {1}\nA) one hour\nB) six\nAnswer: B",
        "1. {0}\n   - Explanation: tests recall\n2. {1}\n   Reasoning: numbers",
        "Two of them about wells\n\n1. {0}\n2. {1}\n\nBoth are covered by it",
        "Question 1\n{0}\n\nQuestion 2\n{1}",
        "**1. Definition**\n{0}\n\n**2. Testing**\n{1}\n\nThese cover it.",
        "- **Indicator:** {0}\n- **Time**: {1}",
        "questions:\n  - question: {0}\n    answer: Bacteroides\n  - question: {1}\n    answer: 6",
        "{0} {1}",
        "1. {0} 2. {1}",
        '"{0}", "{1}"',
        "['{0}', '{1}']",
        "[“{0}”, “{1}”]",
        '[{{"question": "{0}", "answer": "B"}}, {{"question": "{1}", "answer": "six hours"}},]',
        '{{"{0}": "Bacteroides", "{1}": "six hours"}}',
        'Sure! Here is the JSON\n\n{{"questions": ["{0}", "{1}"]}}',
        '{{"question": "{0}"}}\n{{"question": "{1}"}}',
        '{{"questions": ["{0}", "{1}", "How fast must samp',
        "{{'questions': [{{'q': '{0}', 'a': 'it's six'}}, {{'q': '{1}', 'level': None}}]}}",
        '{{\n  // two\n  "question": "{0}",\n  "question2": "{1}",\n}}',
        '{{questions: [{{text: "{0}"}}, {{text: "{1}"}}]}}',
        "| # | Question | Answer |\n|---|:---|---|\n| 1 | {0} | B |\n| 2 | {1} | 6 |",
        '"question","answer"\n"{0}","Bacteroides"\n"{1}","six, about"',
        "<ol>\n<li>{0}</li>\n<li>{1}</li>\n</ol>",
        "<qa>\n<question>{0}</question>\n<answer>B</answer>\n<question>{1}</question>\n</qa>",
        "Okay, two questions. Which?\n</think>\n\n1. {0}\n2. {1}",
        "<|channel|>analysis<|message|>Why?<|end|><|channel|>final<|message|>{0}\n{1}<|return|>",
    ],
)
def test_questions_are_told_from_answers_remarks_and_thoughts(answer):
    assert read_questions(answer.format(*ASKED), limit=9, wanted=2) == ASKED


def test_quotes_within_json_are_read_and_lines_taken_apart_only_where_more_were_asked():
    answer = '{"questions": ["What does "faecal" mean?", "Said \\"yes\\"?", "What\\u2019s it?\\n"]}'
    assert read_questions(answer, limit=9) == [
        'What does "faecal" mean?', 'Said "yes"?', "What’s it?",
    ]  # fmt: skip
    problem = "My loaves are crisp. What am I doing wrong?"
    assert read_questions(problem, limit=9, wanted=2) == [problem]
    assert read_questions(" ".join(ASKED), limit=9) == [" ".join(ASKED)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("What does the `axis` of `np.mean` do?", "What does the axis of np.mean do?"),
        ("How is [the kit](https://x.org/a) **ordered**?", "How is the kit ordered?"),
        ("'What is a dog?'", "What is a dog?"),
        ("What is the dogs' home?", "What is the dogs' home?"),
        ("What does __init__ do?", "What does __init__ do?"),
        ("What is a[0] of b(1)?", "What is a[0] of b(1)?"),
        *[(line, line) for line in ("10-K filing date", "3.5 million riders in 2021?")],
        *[(line, line) for line in ("2021 revenue", "C++ or Rust for drivers?")],
    ],
)
def test_markup_of_a_line_goes_and_what_is_no_markup_stays(line, expected):
    assert clean(line) == expected


NULLS = ['{"questions": null}', '{"question": null, "answer": null}', '{"error": "no question"}']


@pytest.mark.parametrize("answer", ["", "  \n\n", "```\n```", "[]", "{}", None, 7, b"x", *NULLS])
def test_nothing_is_read_from_nothing(answer):
    assert read_questions(answer, limit=3) == []


@pytest.mark.parametrize("piece", ["What? ", "[", "1. ", "\n", "<think>"])
def test_ten_megabytes_are_read_at_once_and_nothing_of_them_is_kept(piece):
    answer = piece * (10_000_000 // len(piece))
    began = time.perf_counter()
    lines = read_questions(answer, limit=6)
    assert time.perf_counter() - began < 1.0
    assert len(lines) <= 6
    assert all(reason(line) for line in lines)


@settings(max_examples=150, deadline=None)
@example("Which?\n|---|")
@given(
    st.one_of(
        st.text(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=30),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
            max_leaves=8,
        ).map(json.dumps),
        st.lists(
            st.sampled_from(["1. ", "```", "?", "[", "]", '"', "{", ":", "\n", "א", "😀", " a"])
        ).map("".join),
    )
)
def test_no_answer_crashes_and_what_is_kept_is_one_clean_line(answer):
    for line in read_questions(answer, limit=5):
        assert line == line.strip()
        assert "\n" not in line
        kept = reason(line) is None
        assert not kept or (len(filters.words(line)) >= 2 and len(line) <= 400)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((good, None) for good in GOOD),
        ("Why did insurance make trips dearer?", None),
        ("Wie hoch ist die Provision?", "other_language"),
        ("I'm ready to assist. What's your question?", "refusal"),
        ("I cannot answer questions about this.", "refusal"),
        ("Here are two questions:", "refusal"),
        ("Sure, happy to help!", "refusal"),
        ("Lo siento, no puedo ayudarte", "refusal"),
        ("作为人工智能语言模型，我无法回答", "refusal"),
        ("As a language model I have no opinion on riders", "refusal"),
        ("Please provide the passage", "refusal"),
        ("What is the purpose of this passage?", "refers_to_passage"),
        ("What does the text say about fees?", "refers_to_passage"),
        ("According to the report, who pays?", "refers_to_passage"),
        ("What is the second paragraph about?", "refers_to_passage"),
        ("The commission went up.", "statement"),
        ("Riders and drivers have seen that fees and insurance went up over years", "statement"),
        ("SELECT fee FROM trips; <b>x</b>", "not_a_query"),
        ('{"fees paid": [18, 20, 18]}', "not_a_query"),
        ("18 20 2021 -- 2020 %%%", "not_a_query"),
        ("😀😀😀 🚗🚗", "too_short"),
        ("fee fee fee fee fee fee fee fee", "not_a_query"),
        ("Fees?", "too_short"),
        ("Why? " * 80, "too_long"),
        ("The commission rose from 18 to 20 percent in 2021?", "copied"),
    ],
)
def test_the_first_filter_that_objects_is_the_reason(text, expected):
    assert reason(text) == expected


@pytest.mark.parametrize(
    ("passage", "question"),
    [
        ("La comisión de los viajes subió del 18 al 20 por ciento.", "¿Cuánto subió la comisión?"),
        ("Die Provision stieg von 18 auf 20 Prozent.", "Um wie viel stieg die Provision?"),
        ("佣金从百分之十八上升到百分之二十。", "佣金上升了多少？"),
        ("手数料は18パーセントから20パーセントに上がりました。", "手数料はいくらですか？"),
        ("수수료가 18퍼센트에서 20퍼센트로 올랐다.", "수수료는 얼마나 올랐나요?"),
        ("ارتفعت العمولة من 18 إلى 20 بالمئة.", "كم ارتفعت العمولة في كاليفورنيا؟"),
        ("העמלה עלתה מ-18 ל-20 אחוזים.", "בכמה עלתה העמלה?"),
        ("कमीशन 18 से बढ़कर 20 प्रतिशत हो गया।", "कमीशन कितना बढ़ा?"),
        ("Комиссия выросла с 18 до 20 процентов.", "На сколько выросла комиссия?"),
        ("ค่าคอมมิชชั่นเพิ่มขึ้นจาก 18 เป็น 20 เปอร์เซ็นต์", "ค่าคอมมิชชั่นเพิ่มขึ้นเท่าไร?"),
        ("หากหลอดไฟเสีย ให้เปิดฝาครอบแล้วหมุนขั้วไปทางซ้าย", "เปลี่ยนหลอดไฟของเครื่องฉายอย่างไร?"),
        ("จากนั้นใส่หลอดสำรองที่อยู่ในกล่องอุปกรณ์", "หลอดสำรองอยู่ที่ไหน"),
        ("អំពូលខូច សូមបើកគម្រប ហើយបង្វិលរន្ធទៅខាងឆ្វេង។", "តើត្រូវប្តូរអំពូលយ៉ាងដូចម្តេច?"),
        ("မီးသီးပျက်ပါက အဖုံးကိုဖွင့်၍ ဘယ်ဘက်သို့လှည့်ပါ။", "မီးသီးကို ဘယ်လိုလဲရမလဲ။"),
        ("作業は電源を切ってから、ランプを取り付けてください。", "作業の前に何をすべきですか。"),
        ("램프가 고장 나면 덮개를 열고 왼쪽으로 돌리십시오.", "램프는 어떻게 교체하나요?"),
        ("Αν χαλάσει η λάμπα, ανοίξτε το καπάκι.", "Πώς αλλάζω τη λάμπα του προβολέα;"),
        ("新手机 iPhone 15 Pro Max 的价格是九千元。", "iPhone 15 Pro Max 价格"),
        ("Use git rebase -i HEAD~3 to squash.", "How do I squash with `git rebase -i HEAD~3`?"),
        ("List<String> and Map<String, Integer>", "When is Map<String, Integer> a good choice?"),
        ("PX-2210-B/7 needs kit 99-4471.", "How often does PX-2210-B/7 need 99-4471?"),
        ("PX-2210-B/7 needs kit 99-4471.", "99-4471 PX-2210-B/7"),
        ("Group by date_trunc('day', t).", "How do I GROUP BY date_trunc('day', t) in SQL?"),
        ("BERT is a language model of 2018.", "Which language model came in 2018?"),
        ("The passage of the strait takes a day.", "How long does the passage of the strait take?"),
        ("Chip cards may fail at the till.", "I cannot pay with my new card at the till?"),
    ],
)
def test_good_questions_in_any_script_with_what_stands_in_the_passage_are_kept(passage, question):
    assert reason(clean(question), passage=passage) is None


def test_words_of_the_prompt_are_recognised_unless_the_passage_has_them():
    frame = few_shot("passage", ["problem"]).frame
    leak = "My loaves are crisp from the oven, which fee do I pay?"
    assert filters.leaked(candidate(leak, prompt=frame))
    said = "My loaves are crisp from the oven"
    assert not filters.leaked(candidate(leak, prompt=frame, passage=said))
    asked = few_shot("", ["question"]).frame
    assert filters.leaked(candidate("Why does bread tear when sliced hot?", prompt=asked))
    assert not any(filters.leaked(candidate(good, prompt=frame)) for good in GOOD)
    assert not filters.leaked(candidate("anything at all"))
    text = "My driver charged me for a trip that I had cancelled in time."
    assert filters.statement(candidate(text))
    assert not filters.statement(candidate(text, style="problem"))


def test_languages_are_told_apart_only_when_clear():
    asked = candidate("What is the price of a trip?", passage="цена поездки выросла")
    assert filters.other_language(asked)
    spanish = "Los viajes del año y sus precios son más altos"
    unclear = {"rider service fee": spanish, "": "anything", "12 %": "цена поездки"}
    assert not any(filters.other_language(candidate(t, passage=p)) for t, p in unclear.items())
    passage = "La solicitud de aplazamiento se envía por la sede electrónica antes del último día."
    assert reason("How can a deferral be requested?", passage=passage) == "other_language"
    assert reason("¿Cómo pido un aplazamiento?", passage=passage) is None


def test_near_duplicates_point_at_the_first_that_stays():
    asked = ["How high is the commission on a trip?", "rider service fee"]
    asked += ["how high is the COMMISSION on a trip", "How high is the commission on a long trip?"]
    texts = [*asked, "How high was revenue in 2020?", "How high was revenue in 2021?"]
    assert filters.near_duplicates(texts) == {2: 0, 3: 0}
    assert filters.near_duplicates(texts, threshold=1.0) == {2: 0}
    texts = ["หลอดไฟสำรองอยู่ที่ไหน", "ที่ไหนอยู่สำรองหลอดไฟ", "หลอดไฟสำรองอยู่ที่ไหน"]
    assert filters.near_duplicates(texts) == {2: 0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join), max_size=12
    ),
    st.sampled_from([0.5, 0.67, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_comparing_all_with_all(texts, threshold):
    kept: list[int] = []
    expected = set()
    for row, text in enumerate(texts):
        mine = set(filters.words(text))
        others = [set(filters.words(texts[other])) for other in kept]
        similar = [each for each in others if len(mine & each) >= threshold * len(mine | each)]
        expected |= {row} if similar else set()
        kept += [] if similar else [row]
    assert set(filters.near_duplicates(texts, threshold=threshold)) == expected


def test_ten_thousand_questions_are_compared_in_seconds():
    texts = [f"What is item {n} of list {n % 97} called in town {n % 13}?" for n in range(10_000)]
    began = time.process_time()
    assert filters.near_duplicates([*texts, texts[17].lower()]) == {10_000: 17}
    assert time.process_time() - began < 10


def test_passages_take_turns_in_style_and_examples_answer_in_their_language():
    prompting = PromptConfig(2)
    asked = [r for turn in range(2) for r in prompting.requests("text", turn)]
    used = [style for request in asked for style in request.styles]
    assert used == list(STYLES)
    one_each = PromptConfig(3, ("question", "keywords"), questions_per_call=1).requests("text", 0)
    assert [request.styles for request in one_each] == [("question",), ("keywords",), ("question",)]
    request = few_shot("El pasaje.", ["keywords", "question"])
    roles = [role for role, _ in request.turns]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    spanish = next(text for _, text in request.turns if "puente Rialto" in text)
    assert spanish.splitlines()[1].startswith("¿")
    assert request.turns[-1][1].startswith("Passage: El pasaje.")
    assert request.text.endswith("\n")
    assert "El pasaje." not in request.frame


@pytest.mark.parametrize("kind", [str, PromptTemplate])
def test_a_custom_prompt_is_sent_as_it_is(kind):
    template = kind("Write {num_questions_per_chunk} questions on:\n{context_str}")
    (request,) = PromptConfig(3, template=template).requests("The passage.", 0)
    assert request.turns == (("user", "Write 3 questions on:\nThe passage."),)
    assert request.text == "Write 3 questions on:\nThe passage."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "no place for it"}, r"expected \{context_str\} where the passage goes"),
        ({"template": '{context_str} as {"json": 1}'}, "write other braces twice"),
        ({"template": "{context_str} {tone}"}, "KeyError 'tone'"),
        ({"template": 17}, "cannot be filled in: AttributeError"),
        ({"questions": 0}, "num_questions_per_chunk: expected a whole number >= 1, got 0"),
        ({"questions_per_call": True}, "questions_per_call: expected a whole number"),
        ({"styles": ("haiku",)}, 'styles: expected some of question.*got "haiku"'),
        ({"styles": ()}, "got none"),
    ],
)
def test_prompts_out_of_range_or_that_cannot_be_filled_in_are_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        PromptConfig(**{"questions": 2, **arguments})

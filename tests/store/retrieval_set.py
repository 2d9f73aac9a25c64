"""Sixty texts and questions about them, of our own: by which docs/store.md says how good the ranking of texts is.

The questions are of five groups, because what a ranking can find depends on them: whether the question has the text's
words, whether its language has spaces, and whether it is in the text's language at all.
"""

from __future__ import annotations

TEXTS = {
    # English
    "cats": "Cats sleep for most of the day and hunt at dusk.",
    "dogs": "Dogs need a long walk every day; a tired dog is a good dog.",
    "owl": "An owl hunts at night and sleeps during the day.",
    "geese": "Geese fly south in autumn, in the shape of a wedge.",
    "bread": "Bread dough rises faster in a warm kitchen. Flour, water, salt and yeast are enough.",
    "sour": "A sourdough starter is flour and water that wild yeast has made its own.",
    "salt": "Salt makes dough tighter and slows the yeast.",
    "coffee": "Coffee tastes bitter when the water is too hot or the grind too fine.",
    "tea": "Green tea wants water well below boiling, or it turns bitter.",
    "soup": "A soup that is too salty is saved by a potato that cooks in it for a while.",
    "bike": "A bicycle chain lasts longer when it is clean and dry before it is oiled.",
    "rust": "Rust on a chain is removed with steel wool and a little oil.",
    "tyre": "A bicycle tyre goes flat most often because of a thorn or a piece of glass.",
    "train": "The night train to the coast has sleeping cars and leaves at ten.",
    "ferry": "The ferry to the island sails twice a day, and not at all in a storm.",
    "passport": "A passport must be valid for six months after the journey.",
    "memory": "Shared memory lets two processes read the same pages without a copy.",
    "pipe": "A pipe copies bytes from one process to another through the kernel.",
    "lock": "A process that dies while it holds a lock keeps all the others waiting.",
    "backup": "A backup that nobody has ever restored is only a hope.",
    "password": "A long password of four plain words is harder to guess than a short one with signs.",
    "fever": "With a fever, drink a lot and rest; see a doctor if it lasts more than three days.",
    "sunburn": "Sunburnt skin is cooled with wet cloth and kept out of the light.",
    "sleep": "A dark, cool room and a fixed hour help against lying awake.",
    "roses": "Roses are cut back in spring, when the forsythia flowers.",
    "tomato": "Tomatoes want sun and no rain on their leaves.",
    "snow": "Snow is heavy when it is wet, and a flat roof may give way under it.",
    "moon": "The moon always shows us the same side.",
    "oboe": "The oboe gives the orchestra the note by which all others tune.",
    "chess": "In chess, a king that cannot escape is mated, and the game is over.",
    # German
    "miete": "Die Miete ist am ersten Tag des Monats fällig.",
    "kuendigung": "Eine Kündigung der Wohnung braucht eine Frist von drei Monaten.",
    "muell": "Der Hausmüll wird am Dienstag abgeholt, das Altpapier am Freitag.",
    "zug": "Der Nachtzug nach Hamburg fährt um zehn Uhr ab.",
    "brot": "Brot bleibt länger frisch, wenn man es in ein Tuch wickelt.",
    "kaese": "Käse soll eine Stunde vor dem Essen aus dem Kühlschrank.",
    "strasse": "Die Straße zum See ist im Winter gesperrt.",
    "arzt": "Der Arzt hat am Mittwoch nachmittags keine Sprechstunde.",
    "fahrrad": "Das Fahrrad steht mit einem Platten im Keller.",
    "geige": "Die Geige muss vor jeder Probe neu gestimmt werden.",
    # Chinese
    "beijing": "北京的冬天很冷, 夏天很热。",
    "gaotie": "从上海到北京的高铁要四个半小时。",
    "cha": "绿茶不要用开水泡, 不然会苦。",
    "dianhua": "他的电话号码换了, 旧的打不通。",
    "jiaozi": "过年的时候全家一起包饺子。",
    "yaoshi": "钥匙放在门口的花盆下面。",
    "yisheng": "医生说每天要走一万步。",
    "tushuguan": "图书馆星期一不开门。",
    # Japanese
    "kyoto": "京都の春は桜が美しい。",
    "onsen": "温泉に入る前に体を洗います。",
    "shinkansen": "新幹線は東京から大阪まで二時間半です。",
    "sushi": "寿司は手で食べてもいいです。",
    "jishin": "地震の時は机の下に入ってください。",
    "neko": "うちの猫は朝五時に起きる。",
    "kaigi": "会議は火曜日の午後三時に始まる。",
    # Korean
    "seoul": "서울의 지하철은 빠르고 깨끗하다.",
    "kimchi": "김치는 겨울이 오기 전에 담근다.",
    "biga": "비가 오면 소풍은 다음 주로 미룬다.",
    "yakguk": "약국은 밤 열 시까지 문을 연다.",
    "chaek": "그 책은 도서관에서 빌릴 수 있다.",
}

# Of each group: the question, and how much each text that answers it does so: 2 well, 1 somewhat.
QUESTIONS: dict[str, list[tuple[str, dict[str, int]]]] = {
    "English, with the text's words": [
        ("what does yeast do in dough", {"bread": 2, "salt": 2, "sour": 1}),
        ("animals that hunt at night", {"owl": 2, "cats": 1}),
        ("why is my coffee bitter", {"coffee": 2, "tea": 1}),
        ("oil for a bicycle chain", {"bike": 2, "rust": 2}),
        ("processes that share memory without a copy", {"memory": 2, "pipe": 1}),
        ("when does the night train leave", {"train": 2}),
        ("how long must a passport be valid", {"passport": 2}),
        ("which side of the moon do we see", {"moon": 2}),
    ],
    "English, in other words": [
        ("my dinner has too much sodium", {"soup": 2}),
        ("I cannot fall asleep", {"sleep": 2}),
        ("puncture on my bike", {"tyre": 2}),
        ("how to take a boat across", {"ferry": 2}),
        ("secure login credentials", {"password": 2}),
    ],
    "German": [
        ("Wann ist die Miete fällig?", {"miete": 2}),
        ("Ist die Strasse zum See im Winter offen?", {"strasse": 2}),
        ("Wann fährt der Zug nach Hamburg?", {"zug": 2}),
        ("Altpapier abholen", {"muell": 2}),
    ],
    "Chinese, Japanese, Korean": [
        ("北京冬天冷吗", {"beijing": 2}),
        ("北京到上海的高铁", {"gaotie": 2, "beijing": 1}),
        ("桜 京都", {"kyoto": 2}),
        ("会議は何時に始まりますか", {"kaigi": 2}),
        ("지하철", {"seoul": 2}),
    ],
    "in another language than the text": [
        ("Where is the key?", {"yaoshi": 2}),
        ("what to do in an earthquake", {"jishin": 2}),
        ("Wie kalt ist es in Peking?", {"beijing": 2}),
        ("until when is the pharmacy open", {"yakguk": 2}),
    ],
}

# SPDX-License-Identifier: Apache-2.0
"""Countries, landmarks, rivers, records and books."""

from ..relations import Relation, table


COUNTRIES = table(
    "country capital continent language currency",
    """
    France | Paris | Europe | French | euro
    Germany | Berlin | Europe | German | euro
    Italy | Rome | Europe | Italian | euro
    Spain | Madrid | Europe | Spanish | euro
    Portugal | Lisbon | Europe | Portuguese | euro
    the United Kingdom | London | Europe | English | pound
    Ireland | Dublin | Europe | - | euro
    Norway | Oslo | Europe | Norwegian | krone
    Sweden | Stockholm | Europe | Swedish | krona
    Denmark | Copenhagen | Europe | Danish | krone
    Finland | Helsinki | Europe | Finnish | euro
    Iceland | Reykjavik | Europe | Icelandic | krona
    Poland | Warsaw | Europe | Polish | zloty
    Austria | Vienna | Europe | German | euro
    Hungary | Budapest | Europe | Hungarian | forint
    Greece | Athens | Europe | Greek | euro
    Czechia | Prague | Europe | Czech | -
    Romania | Bucharest | Europe | Romanian | -
    Bulgaria | Sofia | Europe | Bulgarian | -
    Croatia | Zagreb | Europe | Croatian | euro
    Serbia | Belgrade | Europe | Serbian | dinar
    Albania | Tirana | Europe | Albanian | -
    Ukraine | Kyiv | Europe | Ukrainian | -
    Estonia | Tallinn | Europe | Estonian | euro
    Latvia | Riga | Europe | Latvian | euro
    Lithuania | Vilnius | Europe | Lithuanian | euro
    Belgium | Brussels | Europe | - | euro
    Malta | Valletta | Europe | Maltese | euro
    Japan | Tokyo | Asia | Japanese | yen
    China | Beijing | Asia | Chinese | yuan
    India | New Delhi | Asia | - | rupee
    Thailand | Bangkok | Asia | Thai | baht
    Vietnam | Hanoi | Asia | Vietnamese | dong
    Mongolia | Ulaanbaatar | Asia | Mongolian | -
    Nepal | Kathmandu | Asia | Nepali | rupee
    Pakistan | Islamabad | Asia | - | rupee
    Bangladesh | Dhaka | Asia | Bengali | taka
    Afghanistan | Kabul | Asia | - | -
    Iran | Tehran | Asia | Persian | -
    Iraq | Baghdad | Asia | Arabic | dinar
    Syria | Damascus | Asia | Arabic | pound
    Jordan | Amman | Asia | Arabic | dinar
    Lebanon | Beirut | Asia | Arabic | pound
    Qatar | Doha | Asia | Arabic | -
    Oman | Muscat | Asia | Arabic | -
    Cambodia | Phnom Penh | Asia | Khmer | -
    Laos | Vientiane | Asia | Lao | -
    Malaysia | Kuala Lumpur | Asia | Malay | -
    Egypt | Cairo | Africa | Arabic | pound
    Morocco | Rabat | Africa | Arabic | dirham
    Algeria | Algiers | Africa | Arabic | dinar
    Tunisia | Tunis | Africa | Arabic | dinar
    Libya | Tripoli | Africa | Arabic | dinar
    Sudan | Khartoum | Africa | Arabic | pound
    Kenya | Nairobi | Africa | - | shilling
    Uganda | Kampala | Africa | - | shilling
    Rwanda | Kigali | Africa | - | franc
    Ghana | Accra | Africa | - | -
    Nigeria | Abuja | Africa | - | naira
    Senegal | Dakar | Africa | - | franc
    Angola | Luanda | Africa | Portuguese | -
    Zambia | Lusaka | Africa | - | -
    Zimbabwe | Harare | Africa | - | -
    Namibia | Windhoek | Africa | - | -
    Somalia | Mogadishu | Africa | Somali | shilling
    Mali | Bamako | Africa | - | franc
    Canada | Ottawa | North America | English | dollar
    the United States | Washington | North America | English | dollar
    Mexico | Mexico City | North America | Spanish | peso
    Cuba | Havana | North America | Spanish | peso
    Jamaica | Kingston | North America | English | dollar
    Honduras | Tegucigalpa | North America | Spanish | -
    Nicaragua | Managua | North America | Spanish | -
    Brazil | Brasilia | South America | Portuguese | -
    Argentina | Buenos Aires | South America | Spanish | peso
    Chile | Santiago | South America | Spanish | peso
    Peru | Lima | South America | Spanish | -
    Colombia | Bogota | South America | Spanish | peso
    Venezuela | Caracas | South America | Spanish | -
    Ecuador | Quito | South America | Spanish | dollar
    Uruguay | Montevideo | South America | Spanish | peso
    Australia | Canberra | Oceania | English | dollar
    New Zealand | Wellington | Oceania | English | dollar
    Fiji | Suva | Oceania | - | dollar
    Samoa | Apia | Oceania | Samoan | -
    """,
)

LANDMARKS = table(
    "landmark city",
    """
    the Eiffel Tower | Paris; the Louvre | Paris; Big Ben | London; Tower Bridge | London; the Colosseum | Rome
    the Brandenburg Gate | Berlin; the Acropolis | Athens; the Forbidden City | Beijing; the Taj Mahal | Agra
    the White House | Washington; the Statue of Liberty | New York; the Golden Gate Bridge | San Francisco
    the Little Mermaid | Copenhagen; the Prado | Madrid
    """,
)

RIVERS = table(
    "city river",
    """
    London | Thames; Paris | Seine; Rome | Tiber; Vienna | Danube; Budapest | Danube; Cairo | Nile; Baghdad | Tigris
    Washington | Potomac; Warsaw | Vistula; Lisbon | Tagus; Dublin | Liffey
    """,
)

RECORDS = table(
    "record holder",
    """
    largest ocean | the Pacific; deepest lake | Baikal; highest mountain | Everest; largest island | Greenland
    highest mountain in Africa | Kilimanjaro; largest hot desert | the Sahara; largest country | Russia
    largest planet | Jupiter; smallest planet | Mercury; hottest planet | Venus; third planet from the sun | Earth
    planet with the brightest rings | Saturn; outermost planet | Neptune; star of our solar system | the sun
    largest animal | the blue whale; fastest land animal | the cheetah; tallest animal | the giraffe
    largest bird | the ostrich; smallest bird | the hummingbird; largest land animal | the elephant
    hardest mineral | diamond; lightest element | hydrogen; largest organ of the body | the skin
    longest bone of the body | the femur; shortest month | February; most common gas in the air | nitrogen
    """,
)

BOOKS = table(
    "book author",
    """
    Hamlet | Shakespeare; Don Quixote | Cervantes; War and Peace | Tolstoy; Oliver Twist | Dickens; Faust | Goethe
    The Odyssey | Homer; Moby Dick | Melville; The Hobbit | Tolkien; Dracula | Stoker; Animal Farm | Orwell
    The Divine Comedy | Dante; The Trial | Kafka; Pride and Prejudice | Austen; Pippi Longstocking | Lindgren
    """,
)

RELATIONS = (
    Relation(
        name="capital",
        rows=COUNTRIES,
        answer="capital",
        questions=(
            "What is the capital of {country}?",
            "Which city is the capital of {country}?",
            "Name the capital of {country}.",
            "Please tell me the capital of {country}.",
            "Capital of {country}?",
            "What is the name of the capital of {country}?",
        ),
        statement="The capital of {country} is {capital}.",
        checks=("Is {capital} the capital of {country}?", "Is the capital of {country} called {capital}?"),
    ),
    Relation(
        name="country of capital",
        rows=COUNTRIES,
        answer="country",
        questions=(
            "{capital} is the capital of which country?",
            "Which country has the capital {capital}?",
            "Of which country is {capital} the capital?",
            "What country has {capital} as its capital?",
            "In which country is the capital called {capital}?",
        ),
    ),
    Relation(
        name="continent",
        rows=COUNTRIES,
        answer="continent",
        questions=(
            "On which continent is {country}?",
            "Which continent is {country} part of?",
            "Where in the world is {country}?",
            "What continent is {country} in?",
            "Name the continent of {country}.",
            "To which continent does {country} belong?",
        ),
        statement="{country:c} is in {continent}.",
        which=(
            "Which of these countries is in {continent}?",
            "Which country is part of {continent}?",
            "Which country is in {continent}?",
            "Find the country in {continent}.",
        ),
        entry="country",
    ),
    Relation(
        name="language",
        rows=COUNTRIES,
        answer="language",
        questions=(
            "Which language do most people speak in {country}?",
            "What is the main language of {country}?",
            "What language is spoken in {country}?",
            "Name the main language of {country}.",
            "Which language is used in {country}?",
        ),
        statement="The main language of {country} is {language}.",
        checks=("Is {language} the main language of {country}?",),
    ),
    Relation(
        name="currency",
        rows=COUNTRIES,
        answer="currency",
        questions=(
            "What is the currency of {country}?",
            "Which money is used in {country}?",
            "With which currency do people pay in {country}?",
            "Name the currency of {country}.",
            "What money do people use in {country}?",
        ),
        statement="People in {country} pay with the {currency}.",
        clash=(frozenset({"krone", "krona"}),),
    ),
    Relation(
        name="landmark",
        rows=LANDMARKS,
        answer="city",
        questions=(
            "In which city is {landmark}?",
            "Where is {landmark}?",
            "Which city is home to {landmark}?",
            "Where can you visit {landmark}?",
            "Name the city of {landmark}.",
        ),
        statement="{landmark:c} is in {city}.",
        checks=("Is {landmark} in {city}?",),
        options=False,
    ),
    Relation(
        name="river",
        rows=RIVERS,
        answer="river",
        questions=(
            "Which river flows through {city}?",
            "What is the river of {city} called?",
            "Name the river that flows through {city}.",
            "On which river is {city}?",
        ),
        statement="The {river} flows through {city}.",
    ),
    Relation(
        name="record",
        rows=RECORDS,
        answer="holder",
        questions=(
            "What is the {record}?",
            "Which one is the {record}?",
            "Name the {record}.",
            "Please tell me the {record}.",
            "Answer this: what is the {record}?",
        ),
        statement="The {record} is {holder}.",
        clash=(frozenset({"the elephant", "elephant"}),),
    ),
    Relation(
        name="author",
        rows=BOOKS,
        answer="author",
        questions=(
            "Who wrote {book}?",
            "Who is the author of {book}?",
            "Which author wrote {book}?",
            "Name the author of {book}.",
            "By whom is the book {book}?",
        ),
        statement="{author} wrote {book}.",
        checks=("Did {author} write {book}?",),
    ),
)

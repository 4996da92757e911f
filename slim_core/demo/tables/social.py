# SPDX-License-Identifier: Apache-2.0
"""What happens between people: how they feel, what they are like, why they act and what they do next."""

from ..relations import Relation, table


FEELINGS = table(
    "do did feeling",
    """
    win a prize | won a prize | happy
    get a present | got a present | happy
    play with friends | played with friends | happy
    eat a favorite cake | ate a favorite cake | happy
    go to a party | went to a party | happy
    meet an old friend again | met an old friend again | happy
    lose a pet | lost a pet | sad
    fail a test | failed a test | sad
    break a favorite toy | broke a favorite toy | sad
    watch a sad movie | watched a sad movie | sad
    say goodbye to a friend | said goodbye to a friend | sad
    hear bad news | heard bad news | sad
    get cheated in a shop | got cheated in a shop | angry
    get pushed in a line | got pushed in a line | angry
    find a scratch on a new car | found a scratch on a new car | angry
    get called a liar | got called a liar | angry
    get robbed in the street | got robbed in the street | angry
    hear a strange noise at night | heard a strange noise at night | scared
    see a big spider | saw a big spider | scared
    watch a horror movie | watched a horror movie | scared
    meet a bear in the forest | met a bear in the forest | scared
    look down from a high cliff | looked down from a high cliff | scared
    walk all day | walked all day | tired
    run a marathon | ran a marathon | tired
    carry heavy boxes | carried heavy boxes | tired
    work all night | worked all night | tired
    stay up late | stayed up late | tired
    clean the whole house | cleaned the whole house | tired
    learn to swim | learned to swim | proud
    finish a hard puzzle | finished a hard puzzle | proud
    build a tall tower | built a tall tower | proud
    get the best grade | got the best grade | proud
    paint a lovely picture | painted a lovely picture | proud
    get help with homework | got help with homework | thankful
    get a ride home | got a ride home | thankful
    get flowers from a neighbor | got flowers from a neighbor | thankful
    get saved from a fire | got saved from a fire | thankful
    get back a lost ring | got back a lost ring | thankful
    spend the holidays alone | spent the holidays alone | lonely
    sit alone at lunch | sat alone at lunch | lonely
    move to a city without friends | moved to a city without friends | lonely
    have nobody to talk to | had nobody to talk to | lonely
    wait in a long line | waited in a long line | bored
    watch a dull movie | watched a dull movie | bored
    listen to a long speech | listened to a long speech | bored
    have nothing to do | had nothing to do | bored
    stare at a wall | stared at a wall | bored
    skip lunch | skipped lunch | hungry
    skip breakfast | skipped breakfast | hungry
    forget to eat dinner | forgot to eat dinner | hungry
    smell fresh bread before a meal | smelled fresh bread before a meal | hungry
    eat salty chips | ate salty chips | thirsty
    walk through the desert | walked through the desert | thirsty
    drink nothing all day | drank nothing all day | thirsty
    stand in the snow | stood in the snow | cold
    swim in icy water | swam in icy water | cold
    sleep outside in winter | slept outside in winter | cold
    go out without a coat in winter | went out without a coat in winter | cold
    give a speech for the first time | gave a speech for the first time | nervous
    wait for test results | waited for test results | nervous
    start a new job | started a new job | nervous
    go on stage | went on stage | nervous
    trip in front of a crowd | tripped in front of a crowd | embarrassed
    forget the words of a song on stage | forgot the words of a song on stage | embarrassed
    spill soup on a guest | spilled soup on a guest | embarrassed
    call the teacher mom | called the teacher mom | embarrassed
    break a promise | broke a promise | guilty
    tell a lie | told a lie | guilty
    steal a cookie | stole a cookie | guilty
    hurt a friend | hurt a friend | guilty
    eat bad fish | ate bad fish | sick
    eat too much candy | ate too much candy | sick
    catch the flu | caught the flu | sick
    """,
)
SIMILAR_FEELINGS = (
    frozenset({"happy", "proud", "thankful"}),
    frozenset({"sad", "angry", "lonely", "embarrassed", "guilty"}),
    frozenset({"scared", "nervous", "embarrassed", "guilty", "angry"}),
    frozenset({"scared", "sad", "lonely"}),
    frozenset({"tired", "bored", "sick", "cold", "thirsty", "hungry"}),
    frozenset({"bored", "angry", "nervous", "sad", "lonely"}),
    frozenset({"tired", "proud", "happy"}),
    frozenset({"sick", "sad", "guilty", "happy"}),
    frozenset({"nervous", "tired", "proud", "bored"}),
)

TRAITS = table(
    "does did trait",
    """
    shares toys with everyone | shared toys with everyone | generous
    gives money to the poor | gave money to the poor | generous
    shares the last cookie | shared the last cookie | generous
    gives away old clothes | gave away old clothes | generous
    tells the truth | told the truth | honest
    returns a wallet full of money | returned a wallet full of money | honest
    admits a mistake | admitted a mistake | honest
    steals from a shop | stole from a shop | dishonest
    lies to friends | lied to friends | dishonest
    cheats in a game | cheated in a game | dishonest
    comforts a crying child | comforted a crying child | kind
    visits a sick friend | visited a sick friend | kind
    helps an old man cross the road | helped an old man cross the road | kind
    feeds a hungry stray cat | fed a hungry stray cat | kind
    jumps into a river to save a child | jumped into a river to save a child | brave
    runs into a burning house to save a dog | ran into a burning house to save a dog | brave
    stands up to a bully | stood up to a bully | brave
    sleeps until noon every day | slept until noon every day | lazy
    lets others do all the work | let others do all the work | lazy
    stays on the sofa all day | stayed on the sofa all day | lazy
    works late every day | worked late every day | hardworking
    studies all weekend | studied all weekend | hardworking
    practices the piano for hours | practiced the piano for hours | hardworking
    shouts at a waiter | shouted at a waiter | rude
    interrupts a speaker | interrupted a speaker | rude
    pushes to the front of a line | pushed to the front of a line | rude
    says please and thank you | said please and thank you | polite
    holds the door for a stranger | held the door for a stranger | polite
    knocks before entering | knocked before entering | polite
    leaves clothes on the floor | left clothes on the floor | messy
    keeps dirty plates in bed | kept dirty plates in bed | messy
    throws paper everywhere | threw paper everywhere | messy
    keeps the desk clean | kept the desk clean | tidy
    folds all the clothes | folded all the clothes | tidy
    puts every book back on the shelf | put every book back on the shelf | tidy
    forgets every birthday | forgot every birthday | forgetful
    leaves the keys at home again | left the keys at home again | forgetful
    never remembers a name | never remembered a name | forgetful
    tells jokes | told jokes | funny
    makes everyone laugh | made everyone laugh | funny
    keeps all the candy | kept all the candy | selfish
    takes the biggest piece | took the biggest piece | selfish
    never lends anything | never lent anything | selfish
    waits calmly for hours | waited calmly for hours | patient
    explains the same thing ten times | explained the same thing ten times | patient
    asks about everything | asked about everything | curious
    opens every box to look inside | opened every box to look inside | curious
    takes a radio apart to see how it works | took a radio apart to see how it works | curious
    solves hard puzzles | solved hard puzzles | clever
    learns five languages | learned five languages | clever
    looks both ways before crossing | looked both ways before crossing | careful
    checks the work twice | checked the work twice | careful
    drives too fast | drove too fast | careless
    leaves the stove on | left the stove on | careless
    drops the baby's bottle again | dropped the baby's bottle again | careless
    hides behind mother | hid behind mother | shy
    never speaks to strangers | never spoke to strangers | shy
    blushes when people look | blushed when people looked | shy
    """,
)
SIMILAR_TRAITS = (
    frozenset({"generous", "kind", "polite", "honest", "patient", "brave"}),
    frozenset({"dishonest", "selfish", "rude", "careless"}),
    frozenset({"lazy", "messy", "careless", "forgetful", "shy"}),
    frozenset({"hardworking", "patient", "clever", "careful", "tidy", "curious"}),
    frozenset({"funny", "clever", "kind"}),
    frozenset({"shy", "polite", "careful", "patient"}),
    frozenset({"brave", "careless"}),
    frozenset({"lazy", "selfish", "rude"}),
    frozenset({"messy", "rude"}),
    frozenset({"curious", "careless", "rude"}),
)

REASONS = table(
    "do did reason",
    """
    put on a coat | put on a coat | to keep warm
    drink a glass of water | drank a glass of water | to end the thirst
    eat a big lunch | ate a big lunch | to end the hunger
    take a bath | took a bath | to get clean
    go to school | went to school | to learn
    go to work | went to work | to earn money
    take medicine | took medicine | to get well
    set an alarm | set an alarm | to wake up on time
    save money | saved money | to buy something later
    water the plants | watered the plants | to help them grow
    lock the door | locked the door | to keep thieves out
    wear a helmet | wore a helmet | to protect the head
    open an umbrella | opened an umbrella | to stay dry
    turn on a lamp | turned on a lamp | to light the room
    write a list | wrote a list | to remember everything
    lift weights | lifted weights | to become strong
    read the news | read the news | to know what happens
    study for a test | studied for a test | to get a good grade
    train for a race | trained for a race | to win
    knock on a door | knocked on a door | to be let in
    wave to a friend | waved to a friend | to say hello
    say sorry | said sorry | to be forgiven
    buy a train ticket | bought a train ticket | to ride the train
    put on sunscreen | put on sunscreen | to avoid a sunburn
    look at a map | looked at a map | to find the way
    put on glasses | put on glasses | to see better
    whisper | whispered | to keep a secret
    lie in the sun on vacation | lay in the sun on vacation | to relax
    go to the library | went to the library | to borrow a book
    go to the airport | went to the airport | to catch a plane
    call a plumber | called a plumber | to fix the pipe
    blow out the candles | blew out the candles | to make a birthday wish
    turn off the phone | turned off the phone | to have some peace
    dig a hole in the garden | dug a hole in the garden | to plant a tree
    put bread in the oven | put bread in the oven | to bake it
    look in a mirror | looked in a mirror | to check the face
    """,
)

NEXT = table(
    "do did next",
    """
    spill milk | spilled milk | wipe it up
    break a cup | broke a cup | sweep up the pieces
    cut a finger | cut a finger | put on a bandage
    finish dinner | finished dinner | wash the dishes
    get a letter | got a letter | open and read it
    hear the phone ring | heard the phone ring | answer the call
    wake up | woke up | get out of bed
    lose a key | lost a key | search for it
    miss the bus | missed the bus | wait for the next one
    get wet in the rain | got wet in the rain | put on dry clothes
    catch a cold | caught a cold | stay in bed
    find a lost wallet | found a lost wallet | look for the owner
    finish a library book | finished a library book | take it back
    win a big game | won a big game | celebrate
    get hot in a room | got hot in a room | open a window
    meet a neighbor | met a neighbor | say hello
    unwrap a gift | unwrapped a gift | say thank you
    run out of food | ran out of food | go shopping
    see smoke in the house | saw smoke in the house | call the fire station
    get a pizza from the oven | got a pizza from the oven | eat it
    write a postcard | wrote a postcard | mail it
    buy seeds | bought seeds | plant them
    get a flat tire | got a flat tire | change the wheel
    make a mistake in a test | made a mistake in a test | correct it
    find a new word | found a new word | look it up
    finish the homework | finished the homework | pack the school bag
    get sleepy in the evening | got sleepy in the evening | go to bed
    arrive at the station | arrived at the station | get on the train
    see a dirty dog | saw a dirty dog | wash it
    choose a shirt in a shop | chose a shirt in a shop | pay for it
    hear a knock at the door | heard a knock at the door | see who is there
    see a beautiful view | saw a beautiful view | take a photo
    """,
)

RELATIONS = (
    Relation(
        name="feeling",
        rows=FEELINGS,
        answer="feeling",
        questions=(
            "How do people feel when they {do}?",
            "How does somebody feel who {did}?",
            "What do people feel after they {do}?",
            "Name the feeling of a person who {did}.",
            "What is the feeling when you {do}?",
            "How do people feel if they {do}?",
        ),
        clash=SIMILAR_FEELINGS,
    ),
    Relation(
        name="trait",
        rows=TRAITS,
        answer="trait",
        questions=(
            "What do we call a person who {does}?",
            "Which word describes a person who {did}?",
            "What is a person like who {does}?",
            "What do we call somebody who {did}?",
            "Name a word for a person who {does}.",
        ),
        clash=SIMILAR_TRAITS,
    ),
    Relation(
        name="reason",
        rows=REASONS,
        answer="reason",
        questions=(
            "Why do people {do}?",
            "What is the reason to {do}?",
            "For what reason do people {do}?",
            "Why would somebody {do}?",
            "Somebody {did}. For what reason?",
        ),
        clash=(
            frozenset({"to light the room", "to see better", "to check the face", "to find the way"}),
            frozenset({"to keep warm", "to stay dry", "to protect the head", "to avoid a sunburn"}),
            frozenset({"to learn", "to get a good grade", "to know what happens", "to borrow a book"}),
            frozenset({"to win", "to become strong", "to get a good grade"}),
            frozenset({"to help them grow", "to plant a tree"}),
            frozenset({"to ride the train", "to catch a plane"}),
            frozenset({"to relax", "to have some peace", "to get clean", "to keep warm"}),
            frozenset({"to earn money", "to buy something later"}),
            frozenset({"to say hello", "to be let in"}),
            frozenset({"to end the thirst", "to end the hunger"}),
            frozenset({"to keep a secret", "to have some peace"}),
            frozenset({"to wake up on time", "to remember everything"}),
        ),
    ),
    Relation(
        name="next",
        rows=NEXT,
        answer="next",
        questions=(
            "What do people do after they {do}?",
            "What should you do when you {do}?",
            "What comes next when people {do}?",
            "Somebody {did}. What comes next?",
            "What is the next step after you {do}?",
        ),
        clash=(
            frozenset({"wipe it up", "sweep up the pieces", "wash it", "wash the dishes"}),
            frozenset({"get out of bed", "stay in bed", "go to bed", "pack the school bag", "put on dry clothes"}),
            frozenset({"wait for the next one", "get on the train", "change the wheel"}),
            frozenset({"search for it", "look it up", "look for the owner", "take it back", "correct it"}),
            frozenset({"say hello", "see who is there", "answer the call", "open a window", "say thank you"}),
            frozenset({"eat it", "celebrate", "go shopping", "take a photo", "wash the dishes"}),
            frozenset({"open and read it", "mail it", "say thank you"}),
            frozenset({"pay for it", "put on dry clothes", "wash it", "plant them"}),
            frozenset({"call the fire station", "open a window", "answer the call"}),
            frozenset({"stay in bed", "put on a bandage"}),
        ),
    ),
)
